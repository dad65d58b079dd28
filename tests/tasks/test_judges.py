"""Reward models against one-by-one scoring, a chat judge against a real server that misbehaves, and the way to both."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tasks.small_models import reward_model, tokenizer
from transformers import AutoModelForSequenceClassification

from postgrad.core.config import resolve
from postgrad.core.errors import ConfigError, DataError, MissingExtraError, ModelError, TaskError
from postgrad.core.types import Prompt, Verdict
from postgrad.rl.config import RLConfig
from postgrad.tasks import DataConfig, JudgeConfig, RewardModelConfig, TaskConfig, load_tasks, make_judge
from postgrad.tasks.reward_model import RewardModel, encode

PROMPT = Prompt(id="p", text="Write about rain", task="poems")
REPLIES = ["drip", "rain, rain, go away", "a " * 40, "x", "drip", "<think>hm</think> so it rains "]


# -- reward models -------------------------------------------------------------------------------------------------


def judge_all(judge: Any, replies: list[str], prompt: Prompt = PROMPT) -> list[Verdict]:
    return judge.collect([judge.submit(prompt, reply) for reply in replies])


@pytest.mark.parametrize(("kind", "chat"), [("qwen3", False), ("qwen3", True), ("bert", False)])
def test_scores_are_those_of_one_text_at_a_time(tmp_path: Path, kind: str, chat: bool) -> None:
    folder = reward_model(tmp_path, kind, chat=chat)
    scores = [
        v.score for v in judge_all(RewardModel(RewardModelConfig(path=str(folder), batch_size=4)), REPLIES)
    ]
    module = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for reply, score in zip(REPLIES, scores, strict=True):
        seen = reply.rpartition("</think>")[2].strip()
        text = f"<user>Write about rain\n<assistant>{seen}\n" if chat else f"Write about rain\n{seen}"
        ids = torch.tensor([tokenizer()(text)["input_ids"]])
        assert ids.tolist()[0] == encode(tokenizer(chat=chat), PROMPT, seen)
        with torch.no_grad():
            assert module(input_ids=ids).logits.item() == pytest.approx(score, abs=1e-5)
    assert scores[0] == scores[4]
    assert len(set(scores)) == 5
    # in another order, in other batches and with other company: the same scores
    alone = RewardModel(RewardModelConfig(path=str(folder), batch_size=1))
    assert [v.score for v in judge_all(alone, REPLIES[::-1])] == pytest.approx(scores[::-1], abs=1e-5)


def test_a_pad_token_that_texts_may_hold_does_not_move_the_score(tmp_path: Path) -> None:
    """Qwen3 scores the last token that is not the pad: a text that ends with token 0 must not be cut there."""
    folder = reward_model(tmp_path, chat=False)
    model = RewardModel(RewardModelConfig(path=str(folder)))
    alone = [model._forward([row])[0] for row in [(5, 0, 0), (7, 8, 9, 10, 0)]]
    assert model._forward([(5, 0, 0), (7, 8, 9, 10, 0)]) == pytest.approx(alone, abs=1e-6)
    assert model._forward([(5,), (7, 8, 9, 10, 0)])[0] != pytest.approx(alone[0], abs=1e-4)


def test_long_texts_get_no_score_and_say_why(tmp_path: Path) -> None:
    folder = reward_model(tmp_path)
    model = RewardModel(RewardModelConfig(path=str(folder), max_tokens=30))
    short, long = judge_all(model, ["ok", "word " * 10])
    assert short.score is not None
    assert (long.score, long.status) == (None, "error")
    assert "have 66 tokens" in long.detail
    assert "reads 30" in long.detail


def test_refused_chats_lack_of_memory_and_infinities_are_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = RewardModel(RewardModelConfig(path=str(reward_model(tmp_path, chat=True))))
    tool = Prompt(id="t", messages=({"role": "tool", "content": "7"},), task="poems")
    verdict = model.collect([model.submit(tool, "hm")])[0]
    assert (verdict.score, verdict.status) == (None, "error")
    assert "no tools here" in verdict.detail
    whole = model._forward

    def small(batch: Any) -> list[float]:
        if len(batch) > 2 or any(len(row) > 90 for row in batch):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [math.inf if len(row) < 36 else score for row, score in zip(batch, whole(batch), strict=True)]

    monkeypatch.setattr(model, "_forward", small)
    statuses = [verdict.status for verdict in judge_all(model, ["", "1234", "12345678", "a " * 40, "12345"])]
    assert statuses == ["non_finite", "ok", "ok", "error", "ok"]


def test_outputs_by_label_and_as_probabilities(tmp_path: Path) -> None:
    folder = reward_model(tmp_path, num_labels=3)
    with pytest.raises(ConfigError, match=r"outputs 0 \(LABEL_0\), 1 \(LABEL_1\), 2 \(LABEL_2\); say which"):
        RewardModel(RewardModelConfig(path=str(folder)))
    with pytest.raises(ConfigError, match=r"received 3"):
        RewardModel(RewardModelConfig(path=str(folder), label=3))
    made = [
        RewardModel(RewardModelConfig(path=str(folder), label=label, output="probability"))
        for label in range(3)
    ]
    parts = [model.collect([model.submit(PROMPT, "drip")])[0].score or 0.0 for model in made]
    assert sum(parts) == pytest.approx(1.0, abs=1e-6)
    logits = [RewardModel(RewardModelConfig(path=str(folder), label=i)) for i in (0, 1)]
    first, second = (model.collect([model.submit(PROMPT, "drip")])[0].score or 0.0 for model in logits)
    assert parts[0] / parts[1] == pytest.approx(math.exp(first - second), rel=1e-4)


def test_what_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model directory"):
        RewardModel(RewardModelConfig(path="./nothing"))
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, head_dim=8,
                         num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no trained reward model: it lacks score\.weight"):
        RewardModel(RewardModelConfig(path=str(tmp_path), label=0))


# -- a server ------------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Answers chat completions by what the question asks for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.peak = self.now = 0
        self.failures_left = 0
        self.out = threading.Event()
        self.release = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][0]["content"]
        with server.lock:
            server.requests.append(body)
            server.keys.append(self.headers.get("Authorization"))
            server.now += 1
            server.peak = max(server.peak, server.now)
            fails = server.failures_left > 0 or server.out.is_set()
            server.failures_left -= server.failures_left > 0
        try:
            if "hang" in question:
                server.release.wait(20)
                return
            time.sleep(0.02)
            if fails:
                self._send(500, {"error": {"message": "overloaded"}})
            elif self.path != "/v1/chat/completions":
                self._send(404, {"error": {"message": "no such page"}})
            else:
                reply = question.partition("say ")[2].replace("[", "<").replace("]", ">")
                self._send(200, chat(reply) if "garbage" not in question else {"what": "is this"})
        except OSError:
            pass  # the client has gone
        finally:
            with server.lock:
                server.now -= 1

    def _send(self, code: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def chat(reply: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": reply}
    choice = {"index": 0, "message": message, "finish_reason": "length" if reply == "hm" else "stop"}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


@pytest.fixture
def server() -> Iterator[Server]:
    pytest.importorskip("openai")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield server
        server.release.set()
        server.shutdown()
        thread.join(5)


def options(server: Server, **changes: Any) -> JudgeConfig:
    values = {"template": "{prompt}: {completion}", "retries": 0, "timeout_s": 5.0, **changes}
    return JudgeConfig(base_url=server.url, model="m", **values)


def asked(server: Server, replies: list[str], **changes: Any) -> list[Verdict]:
    task = TaskConfig(name="poems", path="unused.jsonl", judge=options(server, **changes))
    with make_judge(DataConfig(tasks=(task,))) as judge:
        return judge_all(judge, replies)


def test_numbers_in_replies(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    monkeypatch.setenv("OPENAI_ORG_ID", "not for this server")
    said = [
        "say 7",
        "say Score: 8.5",
        "say 9/10",
        "say 4 out of 10.",
        "say [think]1 or 2?[/think]3",
        "say 2, no, 6",
    ]
    verdicts = asked(server, said, api_key_env="MY_KEY", options={"top_k": 5}, temperature=0.5)
    assert [verdict.score for verdict in verdicts] == [7, 8.5, 9, 4, 3, 6]
    body = server.requests[0]
    assert (body["model"], body["temperature"], body["max_tokens"], body["top_k"]) == ("m", 0.5, 512, 5)
    assert body["messages"][0]["content"].startswith("Write about rain: say ")
    assert set(server.keys) == {"Bearer secret"}


def test_replies_without_a_number_or_out_of_range_are_no_score(server: Server) -> None:
    verdicts = asked(server, ["say lovely", "say hm", "say 11", "say -1", "garbage"])
    assert [(verdict.score, verdict.status) for verdict in verdicts] == [(None, "error")] * 5
    details = [verdict.detail for verdict in verdicts]
    assert "holds no number: 'lovely'" in details[0]
    assert "cut off after 512 tokens" in details[1]
    assert "11 is not within 1 to 10" in details[2]
    assert "-1 is not within" in details[3]
    assert "127.0.0.1" in details[4]
    wide = asked(server, ["say 11", "say Quality: 3 of style: 5"], maximum=20, pattern=r"Quality: (\d+)")
    assert [(v.score, v.status) for v in wide] == [(None, "error"), (3, "ok")]


def test_the_same_question_is_asked_once_and_failures_again(server: Server) -> None:
    task = TaskConfig(name="poems", path="unused.jsonl", judge=options(server, concurrency=3))
    with make_judge(DataConfig(tasks=(task,))) as judge:
        scores = [verdict.score for verdict in judge_all(judge, ["say 5", "say 6"] * 20)]
        assert scores == [5, 6] * 20
        assert len(server.requests) == 2
        server.failures_left = 1
        assert judge_all(judge, ["say 4"])[0].status == "error"
        assert judge_all(judge, ["say 4"])[0].score == 4
        judge_all(judge, [f"say {n / 10}" for n in range(10, 40)])
        assert server.peak == 3
        ticket = judge.submit(PROMPT, "say 5")
        judge.collect([ticket])
        with pytest.raises(TaskError, match="collected once"):
            judge.collect([ticket])


def test_errors_of_the_server_are_tried_again(server: Server) -> None:
    server.failures_left = 1
    assert asked(server, ["say 5"], retries=1)[0].score == 5
    assert len(server.requests) == 2


def test_a_server_that_hangs_is_a_timeout(server: Server) -> None:
    start = time.monotonic()
    verdicts = asked(server, ["hang", "say 5"], timeout_s=0.5, concurrency=1)
    assert [(v.score, v.status) for v in verdicts] == [(None, "timeout"), (5, "ok")]
    assert time.monotonic() - start < 5


def test_an_outage_ends_soon(server: Server) -> None:
    """8 requests time out; the other 192 are not asked."""
    start = time.monotonic()
    verdicts = asked(server, [f"hang {n}" for n in range(200)], timeout_s=0.5, concurrency=4)
    assert time.monotonic() - start < 8
    assert {verdict.score for verdict in verdicts} == {None}
    late = [verdict for verdict in verdicts if verdict.status == "timeout"]
    assert 8 <= len(late) <= 12
    assert "not asked: the judge at http://127.0.0.1" in verdicts[-1].detail
    assert len(server.requests) == len(late)


def test_an_outage_is_found_to_be_over(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from postgrad.tasks import chat_judge

    monkeypatch.setattr(chat_judge, "_PROBE_S", 0.3)
    task = TaskConfig(name="poems", path="unused.jsonl", judge=options(server, concurrency=2))
    with make_judge(DataConfig(tasks=(task,))) as judge:
        server.out.set()
        assert {v.status for v in judge_all(judge, [f"{n} say 3" for n in range(30)])} == {"error"}
        assert len(server.requests) < 12
        server.out.clear()
        time.sleep(0.4)
        assert judge_all(judge, ["say 3"])[0].score == 3
        assert [v.score for v in judge_all(judge, [f"{n} say 4" for n in range(20)])] == [4] * 20


def test_a_server_that_is_not_there(server: Server) -> None:
    gone = options(server).model_copy(update={"base_url": "http://127.0.0.1:9/v1"})
    with make_judge(DataConfig(tasks=(TaskConfig(name="poems", path="x", judge=gone),))) as judge:
        verdict = judge_all(judge, ["say 5"])[0]
    assert (verdict.score, verdict.status) == (None, "error")
    assert "http://127.0.0.1:9/v1" in verdict.detail


def test_the_default_template_and_its_placeholders(server: Server) -> None:
    config = JudgeConfig(base_url=server.url, model="m")
    assert config.template.count("{prompt}") == config.template.count("{completion}") == 1
    turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "{completion}?"})
    prompt = Prompt(id="1", messages=turns, answer="42", task="poems")
    task = TaskConfig(
        name="poems", path="x", judge=options(server, template='{"a": {answer}} {prompt} {completion}')
    )
    with make_judge(DataConfig(tasks=(task,))) as judge:
        judge_all(judge, ["say 5"], prompt)
    sent = server.requests[0]["messages"][0]["content"]
    assert sent == '{"a": 42} system: Be brief.\nuser: {completion}? say 5'


# -- the way there -------------------------------------------------------------------------------------------------


def test_each_prompt_goes_to_the_judge_of_its_task(tmp_path: Path, server: Server) -> None:
    folder = str(reward_model(tmp_path))
    rewards = Path(__file__).with_name("rewards_for_tests.py")
    config = DataConfig(
        tasks=(
            TaskConfig(name="poems", path="x", judge=options(server)),
            TaskConfig(name="stories", path="x", reward_model=folder),  # type: ignore[arg-type]
            TaskConfig(name="tales", path="x", reward_model=RewardModelConfig(path=folder)),
            TaskConfig(name="obey", path="x", reward=f"{rewards}:obey"),
        )
    )
    with make_judge(config) as judge:
        names = ["obey", "stories", "poems", "tales", "obey"]
        texts = ["score 0.25", "drip", "say 5", "drip", "score 0.5"]
        prompts = [Prompt(id=name, text="Write", task=name) for name in names]
        tickets = [judge.submit(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        scores = [verdict.score for verdict in judge.collect(tickets[::-1])][::-1]
        assert (scores[0], scores[2], scores[4]) == (0.25, 5, 0.5)
        assert scores[1] == scores[3]
        with pytest.raises(TaskError, match=r"No judge for task 'poem'\. Did you mean 'poems'"):
            judge.submit(Prompt(id="1", text="", task="poem"), "")
        with pytest.raises(TaskError, match="collected once"):
            judge.collect(tickets[:1])
        stories, tales = (judge._judges[name] for name in ("stories", "tales"))  # type: ignore[attr-defined]
        assert stories is tales


def test_configs_that_cannot_work_are_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = {"base_url": "http://127.0.0.1/v1", "model": "m"}

    def checked(**task: Any) -> None:
        load_tasks(
            resolve(RLConfig, None, {"data.tasks": [{"name": "poems", "path": "x.jsonl", **task}]}).data
        )

    cases: list[tuple[dict[str, Any], str]] = [
        ({"reward": "a:b", "judge": judge}, "give one of reward, reward_model and judge"),
        ({"reward_model": "x", "judge": judge}, "has reward_model and judge"),
        ({"judge": {**judge, "template": "good?"}}, r"template must hold \{completion\}"),
        ({"judge": {**judge, "pattern": "("}}, "no regular expression"),
        ({"judge": {**judge, "minimum": 10, "maximum": 1}}, "minimum 10 is not below maximum 1"),
        ({"judge": {**judge, "api_key_env": "sk-proj-123"}}, "name of an environment variable"),
        ({"judge": {**judge, "api_key_env": "NOT_SET_HERE"}}, "NOT_SET_HERE, which is not set"),
        ({"judge": {**judge, "bas_url": 1}}, r"Did you mean 'data\.tasks\.0\.judge\.base_url'"),
        ({"judge": {"model": "m"}}, r"Missing key 'data\.tasks\.0\.judge\.base_url'"),
        ({"reward_model": {"path": "x", "max_token": 1}}, r"reward_model\.max_tokens"),
    ]
    for task, words in cases:
        with pytest.raises(ConfigError, match=words) as caught:
            checked(**task)
        assert "123" not in str(caught.value)
    with pytest.raises(ModelError, match="no model directory"):
        checked(reward_model=str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="has the outputs 0, 1; say which"):
        checked(reward_model=str(reward_model(tmp_path, num_labels=2)))
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'postgrad\[llm\]'"):
        checked(judge=judge)


def test_files_for_judges_need_no_answers_and_may_hold_conversations(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    turns = [{"role": "system", "content": "Hi"}, {"role": "user", "content": "A poem", "toxic": False}]
    rows = [{"conversation": [*turns, {"role": "assistant", "content": "Roses"}]}, {"conversation": "A tale"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"name": "poems", "path": str(path), "prompt_column": "conversation", "reward_model": "hub/name"}
    with pytest.raises(DataError, match="ends with the assistant"):
        load_tasks(DataConfig(tasks=(TaskConfig.model_validate(values),)))[0].prompts()
    (task,) = load_tasks(DataConfig(tasks=(TaskConfig.model_validate({**values, "first_turn": True}),)))
    assert [(prompt.text, prompt.answer) for prompt in task.prompts()] == [("A poem", None), ("A tale", None)]
    with pytest.raises(TaskError, match="make_judge"):
        task.verifier()
    path.write_text(json.dumps({"conversation": turns[:1]}))
    with pytest.raises(DataError, match=r"chats\.jsonl:1: the chat has no user turn"):
        load_tasks(DataConfig(tasks=(TaskConfig.model_validate({**values, "first_turn": True}),)))[
            0
        ].prompts()


def test_judges_are_made_without_torch_and_openai_until_one_is_asked_for() -> None:
    code = (
        "import sys; from postgrad.tasks import *; import postgrad.tasks.judge, postgrad.tasks.worker; "
        "print({'torch', 'openai', 'transformers'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
