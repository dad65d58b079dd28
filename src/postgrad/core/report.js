"use strict";
(() => {
  const groups = JSON.parse(document.getElementById("sample-data").textContent);
  const find = (id) => document.getElementById(id);
  const list = find("prompts"), detail = find("detail"), count = find("count");
  const filters = ["task", "result", "step", "text"].map((name) => find("filter-" + name));
  let shown = [], at = 0;

  // Text only ever enters the page as textContent: samples are not to be trusted.
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const verdict = (correct) => (correct === null ? "unknown" : correct ? "correct" : "incorrect");
  const mark = (correct) => {
    const tone = correct === null ? "unknown" : correct ? "yes" : "no";
    return make("span", "mark " + tone, correct === null ? "–" : correct ? "✓" : "✗");
  };

  const matching = (group, task, result, step, text) => {
    if (task && group.task !== task) return [];
    return group.samples.filter((sample) =>
      (!result || verdict(sample.correct) === result) &&
      (!step || String(sample.step) === step) &&
      (!text || (group.prompt + "\n" + group.answer + "\n" + sample.completion).toLowerCase().includes(text)));
  };

  const apply = () => {
    const [task, result, step, text] = filters.map((field) => (field ? field.value : ""));
    shown = groups
      .map((group) => ({ group, samples: matching(group, task, result, step, text.trim().toLowerCase()) }))
      .filter((item) => item.samples.length);
    list.replaceChildren(...shown.map(row));
    count.textContent = shown.length === 1 ? "1 prompt" : shown.length + " prompts";
    select(0, false);
  };

  const row = ({ group, samples }, index) => {
    const element = make("div", "prompt");
    element.id = "prompt-" + index;
    element.setAttribute("role", "option");
    element.append(make("span", "line", group.prompt.trim().replace(/\s+/g, " ") || "(empty prompt)"));
    const marks = make("span", "marks");
    marks.append(mark(samples[0].correct));
    if (samples.length > 1) {
      marks.append(make("span", "mark unknown", " → "), mark(samples[samples.length - 1].correct));
    }
    element.append(marks);
    const amount = samples.length === 1 ? "step " + samples[0].step : samples.length + " samples";
    element.append(make("span", "sub", (group.task ? group.task + ", " : "") + amount));
    element.addEventListener("click", () => select(index, true));
    return element;
  };

  const card = (sample, label) => {
    const element = make("article", "sample " + verdict(sample.correct));
    const head = make("header");
    head.append(make("span", "", label + "step " + sample.step));
    const result = make("span", sample.correct === null ? "unknown" : sample.correct ? "yes" : "no");
    result.textContent = sample.correct === null ? "not judged" : verdict(sample.correct);
    head.append(result);
    element.append(head, make("div", "facts-line", sample.facts));
    element.append(make("div", "text", sample.completion || "(empty completion)"));
    return element;
  };

  const pair = (cards) => {
    const element = make("div", "pair");
    element.append(...cards);
    return element;
  };

  const select = (index, focus) => {
    detail.replaceChildren();
    if (!shown.length) {
      list.removeAttribute("aria-activedescendant");
      detail.append(make("p", "note", "No sample matches these filters."));
      return;
    }
    at = Math.max(0, Math.min(index, shown.length - 1));
    [...list.children].forEach((element, i) => element.setAttribute("aria-selected", String(i === at)));
    list.setAttribute("aria-activedescendant", "prompt-" + at);
    const chosen = list.children[at];
    if (chosen.offsetTop < list.scrollTop + list.offsetTop) list.scrollTop = chosen.offsetTop - list.offsetTop;
    const below = chosen.offsetTop + chosen.offsetHeight - list.offsetTop - list.clientHeight;
    if (below > list.scrollTop) list.scrollTop = below;
    const { group, samples } = shown[at];
    detail.scrollTop = 0;
    detail.append(make("h4", "", "Prompt " + (at + 1) + " of " + shown.length + (group.task ? ", " + group.task : "")));
    detail.append(make("div", "question text", group.prompt));
    const answer = make("p", "answer", group.answer ? "Reference answer " : "No reference answer");
    if (group.answer) answer.append(make("b", "", group.answer));
    detail.append(answer);
    const first = samples[0], last = samples[samples.length - 1];
    const ends = first.step === last.step ? samples : [first, last];
    const named = { before: "before, ", after: "after, " };
    detail.append(pair(ends.map((sample) => {
      const end = ends === samples ? "" : sample === first ? "first, " : "last, ";
      return card(sample, named[sample.phase] || end);
    })));
    const between = ends === samples ? [] : samples.slice(1, -1);
    if (between.length) {
      detail.append(make("h4", "between", "In between"));
      detail.append(pair(between.map((sample) => card(sample, named[sample.phase] || ""))));
    }
    if (focus) list.focus({ preventScroll: true });
  };

  list.addEventListener("keydown", (event) => {
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: shown.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    select(to, true);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    if (event.key === "j" || event.key === "k") select(at + (event.key === "j" ? 1 : -1), false);
    if (event.key === "/") {
      event.preventDefault();
      find("filter-text").focus();
    }
  });
  filters.forEach((field) => field && field.addEventListener("input", apply));
  find("filters").addEventListener("submit", (event) => event.preventDefault());
  find("filters").hidden = find("browser").hidden = false;
  apply();
})();
