"use strict";
(() => {
  const { steps, sections, marks } = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const last = steps.length, PAGE = 60;
  const slider = find("slider"), search = find("search"), trust = find("trust"), order = find("order"), kind = find("kind");
  let version = last, listed = [], drawn = 0;

  // Text only ever enters the page as textContent: bullets are not to be trusted.
  const make = (tag, className, ...children) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    for (const child of children) if (child !== null && child !== undefined && child !== "") element.append(child);
    return element;
  };
  const plural = (count, word) => count + " " + word + (count === 1 ? "" : "s");

  // -- the playbook at a version: the states that its deltas left
  const stateAt = (wanted) => {
    const bullets = new Map();
    for (let index = 0; index < wanted; index++) {
      for (const [id, row] of steps[index].state) row === null ? bullets.delete(id) : bullets.set(id, row);
    }
    return [...bullets].map(([id, [section, text, helpful, harmful, source, waits, added, changed]]) =>
      ({ id, section, text, helpful, harmful, source, waits, added, changed }));
  };

  const worth = (bullet) => (bullet.helpful + 1) / (bullet.helpful + bullet.harmful + 2);
  const number = (bullet) => Number(bullet.id.slice(bullet.id.lastIndexOf("-") + 1));
  const orders = {
    age: (a, b) => a.added - b.added || number(a) - number(b),
    new: (a, b) => b.changed - a.changed || number(b) - number(a),
    worth: (a, b) => worth(b) - worth(a) || b.helpful - a.helpful || number(a) - number(b),
  };

  const highlighted = (text, words) => {
    const element = make("p");
    let rest = text;
    while (words && rest) {
      const at = rest.toLowerCase().indexOf(words);
      if (at < 0) break;
      element.append(rest.slice(0, at), make("mark", "", rest.slice(at, at + words.length)));
      rest = rest.slice(at + words.length);
    }
    element.append(rest);
    return element;
  };

  const bulletRow = (bullet, words) => {
    const touched = version < last && bullet.changed === version;
    const element = make("li", "bullet" + (bullet.waits ? " waits" : "") + (touched ? " touched" : ""));
    const used = bullet.helpful + bullet.harmful;
    const tally = make("div", "tally");
    if (used) tally.append(make("span", bullet.helpful ? "yes" : "none", "+" + bullet.helpful), make("span", bullet.harmful ? "no" : "none", "−" + bullet.harmful));
    else tally.append(make("span", "none", "not used"));
    if (used) tally.title = "tagged helpful " + bullet.helpful + ", harmful " + bullet.harmful + " times";
    const about = make("div", "from-where", make("code", "", bullet.id));
    if (bullet.waits) about.append(make("span", "badge", "quarantined"));
    if (bullet.source) about.append(make("span", "", bullet.source));
    about.append(make("span", "", "delta " + bullet.added + (bullet.changed > bullet.added ? ", changed by " + bullet.changed : "")));
    element.append(highlighted(bullet.text, words), tally, about);
    if (used) {
      const bar = make("div", "balance");
      bar.setAttribute("aria-hidden", "true");
      const scale = 92 / Math.max(12, used);
      for (const [name, count] of [["good", bullet.helpful], ["bad", bullet.harmful]]) {
        if (!count) continue;
        const part = make("i", name);
        part.style.width = Math.max(2, count * scale) + "px";
        bar.append(part);
      }
      element.append(bar);
    }
    return element;
  };

  const showPlaybook = () => {
    const words = search.value.trim().toLowerCase();
    const all = stateAt(version);
    const shown = all.filter((bullet) => (!trust.value || String(bullet.waits) === trust.value) &&
      (!words || (bullet.id + "\n" + bullet.text + "\n" + bullet.source + "\n" + bullet.section).toLowerCase().includes(words)));
    const names = [...sections, ...all.map((bullet) => bullet.section).filter((name) => !sections.includes(name))];
    const parts = [];
    for (const name of new Set(names)) {
      const inside = shown.filter((bullet) => bullet.section === name).sort(orders[order.value]);
      if (!inside.length) continue;
      const title = name === name.toUpperCase() ? name.charAt(0) + name.slice(1).toLowerCase() : name;
      const list = make("ul", "bullets", ...inside.map((bullet) => bulletRow(bullet, words)));
      parts.push(make("h3", "", title, make("span", "", String(inside.length))), list);
    }
    if (!parts.length) parts.push(make("p", "empty", all.length ? "No bullet matches." : "The playbook is empty."));
    find("sections").replaceChildren(...parts);
    find("count").textContent = shown.length === all.length ? plural(all.length, "bullet") : shown.length + " of " + plural(all.length, "bullet");
  };

  const showVersion = () => {
    const step = steps[version - 1];
    const named = marks.filter((mark) => mark.version === version).map((mark) => "“" + mark.name + "”");
    find("version").textContent = version === last ? "Now, version " + version : "Version " + version + " of " + last;
    const notes = [...named, step && step.at ? step.at.slice(0, 16).replace("T", " ") : "", step ? step.source : "before the first delta"];
    find("version-note").textContent = notes.filter(Boolean).join(", ");
    find("now").disabled = version === last;
    for (const svg of document.querySelectorAll(".growth")) {
      const x0 = Number(svg.dataset.x0), x1 = Number(svg.dataset.x1);
      const x = x0 + (x1 - x0) * version / Math.max(last, 1);
      const cursor = svg.querySelector(".cursor");
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
    }
  };

  const travel = (to) => {
    version = Math.max(0, Math.min(last, to));
    slider.value = version;
    slider.setAttribute("aria-valuetext", "version " + version + " of " + last);
    showVersion();
    showPlaybook();
  };

  // -- differences of two texts, word by word
  const words = (text) => text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) || [];
  const difference = (before, after) => {
    const element = make("span");
    const a = words(before), b = words(after);
    if (a.length * b.length > 250000) {
      element.append(make("del", "", before), " ", make("ins", "", after));
      return element;
    }
    const width = b.length + 1, length = new Uint16Array((a.length + 1) * width);
    for (let i = a.length - 1; i >= 0; i--) for (let j = b.length - 1; j >= 0; j--) {
      length[i * width + j] = a[i] === b[j] ? length[(i + 1) * width + j + 1] + 1
        : Math.max(length[(i + 1) * width + j], length[i * width + j + 1]);
    }
    const runs = [];
    const push = (tag, word) => {
      const end = runs[runs.length - 1];
      if (end && end[0] === tag) end[1] += word; else runs.push([tag, word]);
    };
    let i = 0, j = 0;
    while (i < a.length || j < b.length) {
      if (i < a.length && j < b.length && a[i] === b[j]) { push("", a[i]); i++; j++; }
      else if (i < a.length && (j >= b.length || length[(i + 1) * width + j] >= length[i * width + j + 1])) push("del", a[i++]);
      else push("ins", b[j++]);
    }
    for (const [tag, text] of runs) element.append(tag ? make(tag, "", text) : text);
    return element;
  };

  // -- deltas
  const deed = (verb, ...what) => make("div", "deed " + verb, make("span", "verb " + verb, verb), make("div", "what", ...what));
  const code = (id) => make("code", "", id);
  const deeds = {
    added: (done) => deed("added", code(done.id), done.text, done.waits ? make("span", "badge", " quarantined") : ""),
    changed: (done) => deed("changed", code(done.id), difference(done.was, done.text)),
    merged: (done) => {
      const kept = done.ids.indexOf(done.id), list = make("ul");
      done.ids.forEach((id, index) => index !== kept && list.append(make("li", "", code(id), make("del", "", done.was[index]))));
      return deed("merged", list, make("div", "becomes", code(done.id), difference(done.was[kept] || "", done.text)));
    },
    retired: (done) => deed("retired", code(done.id), make("span", "text-gone", done.was), done.why ? make("div", "aside", done.why) : ""),
    trusted: (done) => deed("trusted", code(done.id), done.text, make("div", "aside", "out of quarantine")),
    quarantined: (done) => deed("quarantined", code(done.id), done.text),
    mark: (done) => deed("mark", "“" + done.name + "” is the version after this delta", done.score === null ? "" : make("span", "aside", ", score " + done.score)),
    rollback: (done) => deed("rollback", "to version " + done.to,
      make("div", "aside", plural(done.counts[0], "bullet") + " back, " + done.counts[1] + " gone, " + done.counts[2] + " changed")),
    tagged: (done) => deed("tagged", make("div", "tags", ...done.tags.map(([id, helpful, harmful]) =>
      make("span", "", code(id), helpful ? make("span", "yes", "+" + helpful) : "", helpful && harmful ? " " : "", harmful ? make("span", "no", "−" + harmful) : "")))),
  };
  const refusals = (step) => deed("refused", make("ul", "", ...step.refused.map((reason) => make("li", "", reason))));

  const stepRow = (step) => {
    const has = (name) => step.done.some((done) => done.do === name);
    const element = make("li", "step" + (has("rollback") ? " backward" : has("mark") ? " station" : ""));
    const button = make("button", "number", "Delta " + step.n);
    button.type = "button";
    button.title = "Show the playbook after this delta";
    button.addEventListener("click", () => {
      travel(step.n);
      find("playbook").scrollIntoView({ behavior: "smooth" });
    });
    const who = make("div", "who", button, make("div", "", step.source));
    if (step.correct !== undefined && step.correct !== null) {
      const right = step.correct === 1, wrong = step.correct === 0;
      who.append(make("div", "verdict " + (right ? "yes" : wrong ? "no" : ""), right ? "✓ right" : wrong ? "✗ wrong" : "score " + step.correct));
    }
    if (step.sample) who.append(make("div", "", step.sample));
    const what = make("div", "", ...step.done.map((done) => deeds[done.do](done)));
    if (step.refused) what.append(refusals(step));
    if (!step.done.length && !step.refused) what.append(make("p", "note", "nothing changed"));
    element.append(who, what);
    return element;
  };

  const kinds = {
    all: () => true,
    changes: (step) => step.refused || step.done.some((done) => done.do !== "tagged"),
    stations: (step) => step.done.some((done) => done.do === "mark" || done.do === "rollback"),
    refused: (step) => step.refused,
  };
  const showMore = () => {
    find("steps").append(...listed.slice(drawn, drawn + PAGE).map(stepRow));
    drawn = Math.min(drawn + PAGE, listed.length);
    const left = listed.length - drawn;
    find("more").hidden = !left;
    find("more").textContent = left ? "Show " + Math.min(PAGE, left) + " earlier of " + left : "";
  };
  const showSteps = () => {
    listed = steps.filter(kinds[kind.value]).reverse();
    drawn = 0;
    find("steps").replaceChildren();
    if (!listed.length) find("steps").append(make("li", "empty", "No such delta."));
    find("num-steps").textContent = listed.length + " of " + plural(steps.length, "delta");
    showMore();
  };

  let frame = 0;
  slider.addEventListener("input", () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(() => travel(Number(slider.value)));
  });
  find("now").addEventListener("click", () => travel(last));
  for (const field of [search, trust, order]) field.addEventListener("input", showPlaybook);
  kind.addEventListener("input", showSteps);
  find("more").addEventListener("click", showMore);
  for (const id of ["filters", "kinds"]) {
    find(id).addEventListener("submit", (event) => event.preventDefault());
    find(id).hidden = false;
  }
  find("travel").hidden = last < 2;
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    event.preventDefault();
    search.focus();
  });
  travel(last);
  showSteps();
})();
