"""Teams of small untrained models: what is exchanged, learned, kept and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from postgrad.core.errors import ConfigError, DataError, ModelError, TrainingError
from postgrad.core.models import EmbeddedConfig, Model
from postgrad.core.models.embedded import build, warm_start
from postgrad.core.types import Prompt
from postgrad.engines.chat.config import ChatConfig
from postgrad.engines.chat.types import Call, Reply
from postgrad.thought import ops
from postgrad.thought.adapter import Adapter
from postgrad.thought.agents import ModelAgent, Turn, _engines
from postgrad.thought.cache import CachedAgent
from postgrad.thought.cases import Case, read_cases, split_cases
from postgrad.thought.config import AdapterConfig, AutoencoderConfig, StatesConfig, TeamConfig
from postgrad.thought.evaluation import evaluate
from postgrad.thought.learning import learn, lesson_loss, make_lessons
from postgrad.thought.served import ServedAgent
from postgrad.thought.team import Team

PROMPTS = [Prompt(id=str(i), text=text) for i, text in enumerate(("ab", "a longer one", "c", "dd ee ff gg"))]
QUICK = AutoencoderConfig(num_thoughts=5, warmup_steps=20, ramp_steps=20, sparse_steps=20, refit_steps=20)


def small(seed: int, width: int = 32, layers: int = 2) -> Model:
    config = EmbeddedConfig(
        hidden_size=width,
        num_layers=layers,
        num_heads=2,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=48,
        seed=seed,
    )
    return build([("ab", "1")], config)


@pytest.fixture(scope="module")
def agents() -> list[ModelAgent]:
    return [ModelAgent(small(0), None, "a"), ModelAgent(small(1, 48), None, "b")]


def config(**changes: Any) -> TeamConfig:
    adapter = AdapterConfig(
        steps=12, batch_size=8, checkpoint_every=4, hidden=16, **changes.pop("adapter", {})
    )
    return TeamConfig(answer_tokens=3, autoencoder=QUICK, adapter=adapter, **changes)


def cases(num: int = 60) -> list[Case]:
    return [
        Case.of_texts(str(i), [f"ab{i}", f"cd{i} x"], str(i % 7), whole=f"ab{i} cd{i}") for i in range(num)
    ]


def one(agent: ModelAgent, prompt: Prompt, prefix: Tensor | None = None) -> Any:
    """Hidden states of all layers of one unpadded prompt, by a plain forward pass."""
    embeds = agent.model.module.get_input_embeddings()(torch.from_numpy(agent.tokens(prompt)[0])[None])
    if prefix is not None:
        embeds = torch.cat([prefix, embeds], 1)
    return agent.model.module(inputs_embeds=embeds, output_hidden_states=True)


# -- agents ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layer", "index"), [(1.0, 2), (0.5, 1)])
def test_states_of_a_padded_batch_are_those_of_each_prompt_alone(layer: float, index: int) -> None:
    agent = ModelAgent(small(3), StatesConfig(layer=layer), batch_tokens=40)
    prefix = torch.randn(len(PROMPTS), 2, agent.embed_width)
    found = agent.states(PROMPTS, None, prefix)
    for i, prompt in enumerate(PROMPTS):
        expected = one(agent, prompt, prefix[i : i + 1]).hidden_states[index][0, -1]
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-5)


def test_several_tokens_lie_side_by_side_with_zeros_before_a_short_text_and_a_mean_is_of_the_turn(
    agents: list[ModelAgent],
) -> None:
    model = agents[0].model
    length = len(agents[0].tokens(PROMPTS[2])[0])
    wide = ModelAgent(model, StatesConfig(tokens=length + 1)).states([PROMPTS[2]])
    states = one(agents[0], PROMPTS[2]).hidden_states[-1][0]
    torch.testing.assert_close(
        wide[0], torch.cat([torch.zeros(states.shape[1]), states.flatten()]), rtol=1e-4, atol=1e-5
    )
    turn = Turn("xy", (5, 9))
    mean = ModelAgent(model, StatesConfig(mean=True)).states([PROMPTS[2]], [turn])
    whole = model.module(
        input_ids=torch.tensor([[*agents[0].tokens(PROMPTS[2])[0].tolist(), 5, 9]]), output_hidden_states=True
    )
    torch.testing.assert_close(mean[0], whole.hidden_states[-1][0, -2:].mean(0), rtol=1e-4, atol=1e-5)


def test_the_models_own_generate_padded_on_the_left_says_what_the_engine_says(
    agents: list[ModelAgent],
) -> None:
    agent, prefix = agents[0], torch.randn(len(PROMPTS), 3, 32, generator=torch.Generator().manual_seed(0))
    by_engine = agent.generate(PROMPTS, prefix, max_tokens=5)
    known = _engines[agent.model.module]
    _engines[agent.model.module] = (known[0], None)
    try:
        assert agent.generate(PROMPTS, prefix, max_tokens=5) == by_engine
    finally:
        _engines[agent.model.module] = known


def test_logits_of_answers_are_those_of_a_plain_pass_and_reach_the_prefix(agents: list[ModelAgent]) -> None:
    agent = agents[1]
    answers = [agent.answer_tokens(text) for text in ("x", "a long answer", "", "yz")]
    prefix = torch.randn(4, 2, 48, requires_grad=True)
    logits = agent.answer_logits(PROMPTS, answers, prefix)
    start = 0
    for i, prompt in enumerate(PROMPTS):
        embeds = agent.model.module.get_input_embeddings()(
            torch.cat([torch.from_numpy(agent.tokens(prompt)[0]), torch.from_numpy(answers[i])])[None]
        )
        plain = agent.model.module(inputs_embeds=torch.cat([prefix[i : i + 1], embeds], 1)).logits[
            0, -len(answers[i]) - 1 : -1
        ]
        torch.testing.assert_close(logits[start : start + len(answers[i])], plain, rtol=1e-4, atol=1e-4)
        start += len(answers[i])
    logits.square().sum().backward()
    assert prefix.grad is not None
    assert bool((prefix.grad.abs().sum((1, 2)) > 0).all())


def test_wrong_virtual_tokens_and_states_that_are_not_finite_are_refused(agents: list[ModelAgent]) -> None:
    with pytest.raises(ModelError, match=r"are \[4, M, 32\].*received \[4, 1, 7\]"):
        agents[0].generate(PROMPTS, torch.zeros(4, 1, 7), max_tokens=1)
    with pytest.raises(ModelError, match="NaN or infinite"):
        agents[0].states(PROMPTS, None, torch.full((4, 1, 32), torch.nan))
    broken = ModelAgent(small(7), None, "broken")
    with torch.no_grad():
        next(iter(broken.model.module.parameters())).fill_(torch.inf)
    with pytest.raises(ModelError, match="broken: 4 of 4 states have NaN"):
        broken.states(PROMPTS)


def test_a_model_with_embeddings_in_every_layer_is_refused() -> None:
    model = small(0)
    model.module.config.hidden_size_per_layer_input = 8
    with pytest.raises(ModelError, match="an embedding of each token in every layer"):
        ModelAgent(model)


# -- adapter ---------------------------------------------------------------------------------------------------------


def test_prefixes_start_small_but_not_zero_and_stay_within_the_norm() -> None:
    held = torch.ones(6, 2, dtype=torch.bool)
    adapter = Adapter(
        held, [32, 48], [1.5, 3.0], AdapterConfig(num_vectors=2), torch.Generator().manual_seed(0)
    )
    for prefix, norm in zip(adapter(torch.zeros(3, 6)), (1.5, 3.0), strict=True):
        assert 0 < float(prefix.detach().norm(dim=-1).min()) < 0.2 * norm
    for prefix, norm in zip(adapter(torch.randn(3, 6) * 1e4), (1.5, 3.0), strict=True):
        torch.testing.assert_close(prefix.detach().norm(dim=-1), torch.full((3, 2), 2 * norm))


def test_the_papers_routing_tells_an_agent_nothing_of_what_is_private_to_another() -> None:
    held = torch.tensor([[True, False], [False, True], [True, True]])
    adapter = Adapter(held, [8, 8], [1.0, 1.0], AdapterConfig(routing="paper"))
    thoughts = torch.randn(1, 3)
    changed = thoughts.clone()
    changed[0, 1] += 9  # agent 1's own
    before, after = adapter(thoughts), adapter(changed)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize("similarity", [0.0, 1.0])
def test_the_loss_is_that_of_its_definition(agents: list[ModelAgent], similarity: float) -> None:
    team = Team(agents, config())
    lessons = make_lessons(team, cases(4), team.listen(cases(4)))
    lesson = lessons[0]
    assert lesson is not None
    prefix = torch.randn(2, 1, 32)
    found = lesson_loss(agents[0], lesson, [1, 3], prefix, similarity, 1.0)
    expected = torch.zeros(())
    for place, i in enumerate((1, 3)):
        answer = torch.from_numpy(lesson.answers[i])
        logits = agents[0].answer_logits([lesson.prompts[i]], [lesson.answers[i]], prefix[place : place + 1])
        chosen = logits.log_softmax(-1)[range(len(answer)), answer]
        soft = (logits.softmax(-1) @ agents[0].embedding).mean(0)
        cosine = nn.functional.cosine_similarity(soft, agents[0].embedding[answer].mean(0), dim=0)
        expected = expected + (similarity * (1 - cosine) - chosen.mean()) / 2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reference", ["labels", "oracle", "text", "self"])
def test_lessons_are_what_each_reference_says(agents: list[ModelAgent], reference: Any) -> None:
    team = Team(agents, config(adapter={"reference": reference}))
    lessons = make_lessons(team, cases(5), team.listen(cases(5)))
    for number, (agent, lesson) in enumerate(zip(agents, lessons, strict=True)):
        assert lesson is not None
        for i, case in enumerate(cases(5)):
            said = agent.model.tokenizer.decode(lesson.answers[i])
            if reference == "labels":
                assert str(said).startswith(case.answer or "")
                continue
            question = case.questions[number]
            if reference == "oracle":
                question = case.whole or question
            if reference == "text":
                other = (
                    agents[1 - number].generate([case.questions[1 - number]], max_tokens=3)[0].text.strip()
                )
                question = Prompt(
                    id="", text=f"{question.text}\n\nThe others said:\n{agents[1 - number].name}: {other}\n"
                )
            assert tuple(lesson.answers[i]) == agent.generate([question], max_tokens=3)[0].token_ids
        assert (lesson.told is not None) == (reference in ("oracle", "text"))


# -- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rounds": 2, "turn_tokens": 2},
        {"adapter": {"routing": "learned", "num_vectors": 3, "noise": 0.1}},
        {"adapter": {"teach": "own", "reference": "self", "routing": "paper"}},
    ],
)
def test_a_team_learns_is_saved_and_answers_the_same_when_loaded(
    agents: list[ModelAgent], tmp_path: Path, changes: dict[str, Any]
) -> None:
    team = Team(agents, config(**changes))
    rows: list[tuple[int, Any]] = []
    before = [parameter.clone() for agent in agents for parameter in agent.model.module.parameters()]
    learn(team, cases(), log=lambda step, metrics: rows.append((step, metrics)))
    after = [parameter for agent in agents for parameter in agent.model.module.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))  # frozen
    assert rows[-1][0] == 12 * team.config.rounds
    team.save_pretrained(tmp_path)
    loaded = Team.from_pretrained(tmp_path, agents)
    assert loaded.generate(cases(6)) == team.generate(cases(6))
    with pytest.raises(ModelError, match="b was model .* and is"):
        Team.from_pretrained(tmp_path, [agents[0], ModelAgent(small(9, 48), None, "b")])


def test_three_models_of_different_widths_and_tokenizers_are_a_team() -> None:
    texts = ([("ab", "1")], [("the quick brown fox " * 3, "jumps")] * 3, [("cd9 cd9 cd9", "cd9")] * 3)
    sizes = (32, 48, 64)
    team = Team(
        [
            ModelAgent(
                build(text, EmbeddedConfig(hidden_size=size, num_layers=2, intermediate_size=48)),
                None,
                str(size),
            )
            for text, size in zip(texts, sizes, strict=True)
        ],
        config(rounds=2, turn_tokens=2),
    )
    assert len({len(agent.model.tokenizer) for agent in team.agents if isinstance(agent, ModelAgent)}) > 1
    asked = [Case.of_texts(str(i), [f"ab{i}", f"the fox {i}", f"cd9 {i}"], str(i % 3)) for i in range(40)]
    learn(team, asked)
    prefixes, heard = team.exchange(asked[:5])
    assert [prefix.shape for prefix in prefixes] == [(5, 1, size) for size in sizes]
    assert heard.states.shape == (5, sum(sizes))
    assert all(len(row.answers[0]) == 5 for row in evaluate(team, asked[:5]).rows.values())


def test_agents_learn_to_say_what_only_the_other_knows() -> None:
    demonstrations = [
        (f"{letter}{i}", str((7 * i + len(letter)) % 2)) for i in range(40) for letter in ("a", "b")
    ]
    settings = EmbeddedConfig(
        hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=16, intermediate_size=48, steps=80
    )
    model = build(demonstrations, settings)
    warm_start(model, demonstrations, settings)
    known = [str(i % 2) for i in range(80)]
    asked = [
        Case.of_texts(str(i), [f"a{i}", f"b{digit}"], digit) for i, digit in enumerate(known)
    ]  # told to the second alone
    adapter = AdapterConfig(steps=150, batch_size=16, checkpoint_every=50, lr=5e-3)
    team = Team(
        [ModelAgent(model, None, "a"), ModelAgent(model, None, "b")],
        config().model_copy(update={"adapter": adapter}),
    )
    losses: list[float] = []
    learn(team, asked, log=lambda step, metrics: losses.append(metrics.get("adapter/loss_valid", torch.nan)))
    rows = evaluate(team, asked, ["thoughts", "alone", "shuffled"]).rows
    right = {way: sum(rows[way].right[0]) / len(asked) for way in rows}
    assert right["thoughts"] > 0.9, right
    assert max(right["alone"], right["shuffled"]) < 0.7, right


def test_learning_that_was_stopped_goes_on_to_the_same_bits(agents: list[ModelAgent], tmp_path: Path) -> None:
    def run(folder: Path, stop: int | None) -> Team:
        kept = [CachedAgent(agent, folder) for agent in agents]
        team = Team(kept, config(rounds=2))

        def log(step: int, metrics: Any) -> None:
            if stop is not None and step >= stop:
                raise KeyboardInterrupt

        learn(team, cases(), log=log, folder=folder)
        return team

    whole = run(tmp_path / "whole", None)
    for stop in (0, 8, 16):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", stop)
    parts = run(tmp_path / "parts", None)
    for team in (whole, parts):
        assert team.adapter is not None
    first, second = whole.fitted()[1].state_dict(), parts.fitted()[1].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_states_and_turns_are_computed_once(
    agents: list[ModelAgent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = CachedAgent(agents[0], tmp_path)
    states, said = kept.states(PROMPTS), kept.generate(PROMPTS, max_tokens=3)
    monkeypatch.setattr(ModelAgent, "states", None)
    monkeypatch.setattr(ModelAgent, "generate", None)
    again = CachedAgent(agents[0], tmp_path)
    assert torch.equal(again.states(PROMPTS[::-1]), states.flip(0))
    assert again.generate(PROMPTS[1:], max_tokens=3) == said[1:]
    with pytest.raises(TypeError):
        again.states(PROMPTS, None, torch.zeros(4, 1, 32))  # another prefix is another state


class Echo:
    """A chat that says how long the question was, and keeps it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def complete(self, call: Call) -> Reply:
        self.asked.append(call.messages[-1]["content"])
        return Reply(str(len(call.messages[-1]["content"])))

    def count_tokens(self, text: str) -> int:
        return len(text)

    async def close(self) -> None: ...


def test_an_agent_behind_a_server_is_read_by_a_local_model_and_told_by_text(agents: list[ModelAgent]) -> None:
    chat = Echo()
    served = ServedAgent(ChatConfig(model="far", base_url="http://nowhere.invalid/v1"), agents[1], chat)
    team = Team([agents[0], served], config(turn_tokens=2))
    learn(team, cases())
    asked = cases(3)
    _, heard = team.exchange(asked)
    expected = agents[1].states([case.views[1] for case in asked], heard.turns[1])
    torch.testing.assert_close(heard.states[:, 32:], expected)
    chat.asked.clear()
    answers = team.generate(asked)
    assert [turn.text for turn in answers[1]] == [str(len(text)) for text in chat.asked[3:]]
    for i, text in enumerate(chat.asked[3:]):
        assert text == f"cd{i} x\n\nThe others said:\na: {heard.turns[0][i].text.strip()}"
    with pytest.raises(ModelError, match="takes no virtual tokens"):
        served.generate([asked[0].views[1]], torch.zeros(1, 1, 48), max_tokens=1)


# -- controls --------------------------------------------------------------------------------------------------------


def test_every_way_answers_every_case_and_controls_are_what_they_say(agents: list[ModelAgent]) -> None:
    team = Team(agents, config())
    learn(team, cases())
    asked = cases(8)
    found = evaluate(team, asked)
    assert list(found.rows) == [
        "thoughts",
        "alone",
        "zero",
        "random",
        "shuffled",
        "own",
        "vote",
        "text",
        "raw",
        "whole",
    ]
    for row in found.rows.values():
        assert all(len(right) == 8 for right in row.right)
    prefixes, _ = team.exchange(asked)
    alone = [[turn.text for turn in row] for row in team.answer(asked)]
    assert found.rows["alone"].answers == alone
    assert found.rows["thoughts"].answers == [
        [turn.text for turn in row] for row in team.answer(asked, prefixes)
    ]
    empty = [torch.zeros_like(prefix) for prefix in prefixes]
    assert found.rows["zero"].answers == [[turn.text for turn in row] for row in team.answer(asked, empty)]
    with pytest.raises(ConfigError, match="Unknown way 'nothing'"):
        evaluate(team, asked, ["nothing"])  # pyright: ignore[reportArgumentType]


def test_a_team_that_tells_nothing_is_warned_of(agents: list[ModelAgent]) -> None:
    team = Team(agents, config())
    learn(team, cases())
    _, adapter = team.fitted()
    with torch.no_grad():
        for weight in adapter.enter:
            weight.zero_()
    found = evaluate(team, cases(6), ["thoughts", "shuffled"], lambda asked, said: [True] * len(said))
    assert any("shuffled virtual tokens are as good" in warning for warning in found.warnings)


def test_ablated_and_quantised_thoughts_are_told_as_such(agents: list[ModelAgent]) -> None:
    team = Team(agents, config())
    learn(team, cases())
    told: list[Tensor] = []
    tell = team.tell
    team.tell = lambda thoughts: (told.append(thoughts), tell(thoughts))[1]  # type: ignore[method-assign]
    evaluate(team, cases(6), ["thoughts"], bits=1, without=[2])
    assert set(told[0].unique().tolist()) <= {-3.0, 3.0}
    evaluate(team, cases(6), ["thoughts"], without=[2])
    assert bool((told[1][:, 2] == 0).all())


# -- what is refused -------------------------------------------------------------------------------------------------


def test_bad_teams_and_cases_are_refused_with_a_reason(agents: list[ModelAgent], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least two agents"):
        Team(agents[:1])
    with pytest.raises(ConfigError, match="one name"):
        Team([agents[0], agents[0]])
    team = Team(agents, config())
    with pytest.raises(ModelError, match="not learned"):
        team.generate(cases(2))
    with pytest.raises(DataError, match="too few states for 5 thoughts"):
        learn(team, cases(5))
    with pytest.raises(DataError, match="no answer"):
        learn(team, [Case.of_texts(str(i), ["a", "b"], None) for i in range(20)])
    with pytest.raises(DataError, match="1 views"):
        learn(team, [Case.of_texts("x", ["a"], "1")])
    with pytest.raises(DataError, match="no `whole`"):
        learn(
            Team(agents, config(adapter={"reference": "oracle"})),
            [Case.of_texts(str(i), [f"{i}", "b"], "1") for i in range(20)],
        )
    with pytest.raises(ModelError, match="no team that can be read"):
        Team.from_pretrained(tmp_path, agents)


def test_a_loss_that_is_not_finite_stops_learning(
    agents: list[ModelAgent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "similarity_loss", lambda said, meant: said.sum(1) * torch.nan)
    with pytest.raises(TrainingError, match="at update 0. Lower adapter.lr"):
        learn(Team(agents, config()), cases())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "no JSON"),
        ("[1]", "a case is an object"),
        ('{"prompt": "a", "views": ["a", "b"]}', "give prompt, which all agents see, or views"),
        ('{"views": ["a"]}', "a text for each of 2 agents"),
        ('{"views": {"a": "x", "c": "y"}}', "the agents are a, b"),
        ('{"prompt": ""}', "must be text"),
        ('{"promt": "a"}', "unknown key 'promt'.*prompt"),
    ],
)
def test_a_case_that_cannot_be_read_is_named_by_file_and_line(
    tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text('{"prompt": "fine", "answer": 1}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"(?s)cases.jsonl, line 2.*{message}"):
        read_cases(path, ["a", "b"])


def test_cases_of_names_and_numbers_are_the_same_and_their_split_is_by_content(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text(
        '{"id": "1", "views": ["x", "y"], "answer": "3", "whole": "x y"}\n'
        '{"id": "2", "views": {"b": "y", "a": "x"}, "answer": 3}\n'
    )
    first, second = read_cases(path, ["a", "b"])
    assert [view.text for view in first.views] == [view.text for view in second.views] == ["x", "y"]
    assert first.answer == second.answer == "3"
    kept, held = split_cases(cases(200), 0.25)
    assert len(kept) + len(held) == 200
    assert 20 < len(held) < 80
    assert {case.id for case in kept}.isdisjoint(case.id for case in held)
    assert {case.id for case in split_cases(cases(200)[::-1], 0.25)[1]} == {case.id for case in held}
