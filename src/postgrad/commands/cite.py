"""`postgrad cite`: BibTeX of postgrad and of the papers that its rooms implement."""

from __future__ import annotations

from dataclasses import dataclass

from postgrad._version import __version__


@dataclass(frozen=True)
class Paper:
    """A paper on arXiv and the rooms that implement it."""

    key: str
    title: str
    authors: tuple[str, ...]
    arxiv: str
    rooms: str
    year: int = 2025


PAPERS = (
    Paper(
        "khatri2025scalerl",
        "The Art of Scaling Reinforcement Learning Compute for {LLMs}",
        (
            "Khatri, Devvrit",
            "Madaan, Lovish",
            "Tiwari, Rishabh",
            "Bansal, Rachit",
            "Duvvuri, Sai Surya",
            "Zaheer, Manzil",
            "Dhillon, Inderjit S.",
            "Brandfonbrener, David",
            "Agarwal, Rishabh",
        ),
        "2510.13786",
        "rl, scaling",
    ),
    Paper(
        "gxchen2025mara",
        "{KL}-Regularized Reinforcement Learning is Designed to Mode Collapse",
        ("GX-Chen, Anthony", "Prakash, Jatin", "Guo, Jeff", "Fergus, Rob", "Ranganath, Rajesh"),
        "2510.20817",
        "mara",
    ),
    Paper(
        "lin2025sparse",
        "Continual Learning via Sparse Memory Finetuning",
        (
            "Lin, Jessy",
            "Zettlemoyer, Luke",
            "Ghosh, Gargi",
            "Yih, Wen-Tau",
            "Markosyan, Aram",
            "Berges, Vincent-Pierre",
            "O{\\u{g}}uz, Barlas",
        ),
        "2510.15103",
        "memory",
    ),
    Paper(
        "kreer2025bayesian",
        "{Bayesian} Influence Functions for {Hessian}-Free Data Attribution",
        ("Kreer, Philipp Alexander", "Wu, Wilson", "Adam, Maxwell", "Furman, Zach", "Hoogland, Jesse"),
        "2509.26544",
        "influence",
    ),
    Paper(
        "zhang2025ace",
        "Agentic Context Engineering: Evolving Contexts for Self-Improving Language Models",
        (
            "Zhang, Qizheng",
            "Hu, Changran",
            "Upasani, Shubhangi",
            "Ma, Boyuan",
            "Hong, Fenglu",
            "Kamanuru, Vamsidhar",
            "Rainton, Jay",
            "Wu, Chen",
            "Ji, Mengmeng",
            "Li, Hanchen",
            "Thakker, Urmish",
            "Zou, James",
            "Olukotun, Kunle",
        ),
        "2510.04618",
        "playbook",
    ),
    Paper(
        "zheng2025thought",
        "Thought Communication in Multiagent Collaboration",
        (
            "Zheng, Yujia",
            "Zhao, Zhuokai",
            "Li, Zijian",
            "Xie, Yaqi",
            "Gao, Mingze",
            "Zhang, Lizhu",
            "Zhang, Kun",
        ),
        "2510.20733",
        "thought",
    ),
)


def main() -> int:
    """Print the entries; returns 0."""
    print(bibtex(), end="")
    return 0


def bibtex() -> str:
    """postgrad first, then one `@misc` entry per paper, each below a comment that names its rooms."""
    own = (
        f"@software{{postgrad,\n  title = {{postgrad}},\n  version = {{{__version__}}},\n"
        "  license = {Apache-2.0}\n}\n"
    )
    return "\n".join([own, *(_entry(paper) for paper in PAPERS)])


def _entry(paper: Paper) -> str:
    fields = {
        "title": paper.title,
        "author": " and ".join(paper.authors),
        "year": str(paper.year),
        "eprint": paper.arxiv,
        "archivePrefix": "arXiv",
        "url": f"https://arxiv.org/abs/{paper.arxiv}",
    }
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
    return f"% {paper.rooms}\n@misc{{{paper.key},\n{lines}\n}}\n"
