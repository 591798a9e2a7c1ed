"use strict";
// Follows a run that is under way: asks the server how far it is, and offers a page with the new results.
// Texts of models and data sets only ever become text (textContent), never markup, code or an address.
(() => {
  const EVERY = 2000, WHILE_HIDDEN = 15000, KEPT = "lingraft-live";
  const SVG = "http://www.w3.org/2000/svg";

  function element(tag, text = "", className = "") {
    const made = document.createElement(tag);
    made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function drawn(tag, attributes, text = "") {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
    made.textContent = text;
    return made;
  }

  function duration(seconds) {
    const whole = Math.round(seconds);
    if (whole < 60) return `${whole} s`;
    if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
    return `${Math.floor(whole / 3600)} h ${Math.floor(whole % 3600 / 60)} min`;
  }

  const number = value => value.toLocaleString("en");
  const part = name => document.getElementById(`live-${name}`);
  // Written only where it changed: a reader's selection stays, and nothing is read out twice.
  function say(where, text) { if (where.textContent !== text) where.textContent = text; }

  // A new page of the same run opens as the reader left the old one: the same folds, the same place.
  function folds() {
    const seen = new Map();
    return [...document.querySelectorAll("details:not(.save)")].map(one => {
      const name = one.id || `${one.closest("section")?.id} ${one.querySelector("summary")?.textContent}`;
      seen.set(name, (seen.get(name) ?? 0) + 1);
      return [`${name} ${seen.get(name)}`, one];
    });
  }
  function keep() {
    const section = [...document.querySelectorAll("main > section")].filter(one => one.getBoundingClientRect().top <= 1).pop();
    const kept = { found: newest, open: folds().map(([name, one]) => [name, one.open]), section: section?.id ?? "", offset: section ? -section.getBoundingClientRect().top : scrollY };
    try {
      sessionStorage.setItem(KEPT, JSON.stringify(kept));
      history.scrollRestoration = "manual";
    } catch { /* nothing is kept then */ }
  }
  function restore() {
    let kept = null;
    try { kept = JSON.parse(sessionStorage.getItem(KEPT)); sessionStorage.removeItem(KEPT); } catch { return; }
    if (!kept) return;
    const open = new Map(kept.open);
    for (const [name, one] of folds()) if (open.has(name)) one.open = open.get(name);
    // What was last known has its height before the place is sought.
    if (kept.found) show(newest = { ...kept.found, page: version() });
    const section = document.getElementById(kept.section);
    const place = () => scrollTo({ top: (section ? section.getBoundingClientRect().top + scrollY : 0) + kept.offset, behavior: "instant" });
    place();
    addEventListener("load", () => { place(); history.scrollRestoration = "auto"; }); // an address with a # has scrolled
  }

  const version = () => document.getElementById("under-way").dataset.version;
  let isTouched = false; // by a click or key: such a page is not replaced unasked
  let isReplaced = false;
  function replacePage() { isReplaced = true; keep(); location.reload(); }

  function sentence(found) {
    const { status, problem } = found;
    if (!status) return problem;
    const done = status.stages.filter(one => one.state === "done").length;
    const failed = status.stages.filter(one => one.state === "failed").length;
    const count = `${number(done)} of ${number(status.stages.filter(one => one.state !== "not needed").length)} stages are done` + (failed ? `, ${number(failed)} failed` : "");
    switch (status.state) {
      case "not begun": return "The run has not begun, or still reads its data.";
      case "under way": return status.stages.length ? `The run is under way: ${count}.` : "The run is under way: it looks at its tasks and data.";
      case "stopped": return `The run is stopped: ${count}. The same command (lingraft run) goes on.`;
      case "failed": return `The run has ended: ${count}. The same command (lingraft run) tries failed stages again.`;
      default: return `The run is done: ${count}.`;
    }
  }

  function showAll(status) {
    const needed = status.stages.filter(one => one.state !== "not needed");
    const over = needed.filter(one => one.state === "done" || one.state === "failed").length;
    part("all").hidden = !needed.length || status.state === "done";
    const [bar, text] = part("all").children;
    bar.max = needed.length || 1;
    bar.value = over;
    const unknown = status.unknown.join(", ");
    const left = status.seconds_left === null ? "time left: not known yet" : unknown ? `at least ${duration(status.seconds_left)} left (not known of: ${unknown})` : `about ${duration(status.seconds_left)} left`;
    const atOnce = status.at_work.length > 1 ? `, ${number(status.at_work.length)} at work` : "";
    say(text, `${number(over)} of ${number(needed.length)} stages` + (status.state === "under way" ? `${atOnce}, ${left}` : ""));
  }

  function howFar(own) {
    const now = own.progress;
    if (!now) return "";
    const unit = now.unit ?? (now.loss === null ? "" : "steps");
    return `${number(now.done)}${now.total ? ` of ${number(now.total)}` : ""} ${unit}`.trim();
  }

  function timeOf(own, status) {
    if (own.lost_since !== null) return `no sign of life since ${new Date(1000 * own.lost_since).toLocaleTimeString()}`;
    const left = status.state === "under way" ? own.progress?.seconds_left ?? null : null;
    return left === null ? `${duration(own.seconds)} so far` : `${duration(left)} left`;
  }

  function move(bar, now) {
    if (now && now.total) { bar.max = now.total; bar.value = now.done; } else bar.removeAttribute("value");
  }

  // Of several stages at work each has a row, and one of them is shown in full: the reader's choice, else the first.
  let chosen = "";
  const rows = new Map();
  function showWork(status) {
    part("work").hidden = status.at_work.length < 2;
    const body = part("work").querySelector("tbody");
    for (const [path, row] of rows) if (!status.at_work.some(one => one.path === path)) { row.remove(); rows.delete(path); }
    status.at_work.forEach((own, place) => {
      let row = rows.get(own.path);
      if (!row) {
        row = element("tr");
        const name = element("td", "", "text"), far = element("td", "", "text"), button = element("button");
        button.type = "button";
        button.addEventListener("click", () => { chosen = own.path; show(newest); });
        name.append(button);
        far.append(element("progress"), element("span"));
        row.append(name, element("td", "", "text"), far, element("td"));
        rows.set(own.path, row);
      }
      if (body.children[place] !== row) body.insertBefore(row, body.children[place] ?? null);
      const [name, where, far, time] = row.children;
      say(name.firstChild, `${own.kind} ${own.name}`);
      say(where, own.host ? `${own.host}, process ${own.process}` : "");
      far.firstChild.setAttribute("aria-label", `${own.kind} ${own.name}`);
      move(far.firstChild, own.progress);
      say(far.lastChild, howFar(own));
      say(time, timeOf(own, status));
      time.className = own.lost_since === null ? "" : "lost";
    });
    const own = status.at_work.find(one => one.path === chosen) ?? status.at_work[0];
    for (const [path, row] of rows) row.querySelector("button").setAttribute("aria-pressed", String(path === own?.path));
    return own;
  }

  function showStage(status) {
    const own = showWork(status);
    part("stage").hidden = !own;
    if (!own) return;
    const title = own.lost_since !== null ? "Lost" : status.state === "under way" ? "At work" : "Stopped in";
    say(part("stage").querySelector("h3"), `${title}: ${own.kind} ${own.name}`);
    const [bar, text] = part("stage").querySelector("div").children;
    const now = own.progress, parts = [];
    move(bar, now);
    if (now) {
      parts.push(howFar(own));
      if (now.loss !== null) parts.push(`loss ${now.loss.toFixed(3)}`);
      if (now.tokens_per_second !== null) parts.push(`${number(Math.round(now.tokens_per_second))} tokens/s`);
      if (now.mfu !== null) parts.push(`MFU ${(100 * now.mfu).toFixed(now.mfu < 0.1 ? 1 : 0)}%`);
      if (now.seconds_left !== null && status.state === "under way" && own.lost_since === null) parts.push(`${duration(now.seconds_left)} left`);
    }
    parts.push(`${duration(own.seconds)} so far`);
    if (own.host) parts.push(`on ${own.host}`);
    say(text, parts.join(", "));
    showCurve(own.losses);
    showAnswers(own.answers);
  }

  let shownCurve = "";
  function showCurve(losses) {
    part("curve").hidden = losses.length < 2;
    if (losses.length < 2 || shownCurve === JSON.stringify(losses)) return;
    shownCurve = JSON.stringify(losses);
    const steps = losses.map(one => one[0]), values = losses.map(one => one[1]);
    const [first, last] = [steps[0], steps[steps.length - 1]];
    const low = Math.min(...values), high = Math.max(...values), space = high - low || 1;
    const x = step => 60 + 560 * (step - first) / (last - first || 1), y = loss => 14 + 170 * (high - loss) / space;
    const summary = `Training loss in nats per supervised token: ${values[0].toFixed(3)} at step ${number(first)}, ${values[values.length - 1].toFixed(3)} at step ${number(last)}.`;
    const picture = drawn("svg", { viewBox: "0 0 640 220", role: "img", "aria-label": summary });
    for (const [value, at] of [[high, y(high)], [low, y(low)]]) {
      picture.append(drawn("line", { x1: 60, x2: 620, y1: at, y2: at, stroke: "currentColor", opacity: 0.25 }));
      picture.append(drawn("text", { x: 52, y: at + 4, "text-anchor": "end" }, value.toFixed(3)));
    }
    picture.append(drawn("text", { x: 60, y: 206 }, `step ${number(first)}`), drawn("text", { x: 620, y: 206, "text-anchor": "end" }, number(last)));
    picture.append(drawn("polyline", { points: losses.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" "), fill: "none", stroke: "currentColor", "stroke-width": 2, "stroke-linejoin": "round" }));
    const mark = drawn("circle", { r: 4, fill: "currentColor", visibility: "hidden" });
    picture.append(mark);
    const caption = part("curve").querySelector("figcaption p");
    picture.addEventListener("pointermove", event => {
      const at = (event.clientX - picture.getBoundingClientRect().left) * 640 / picture.getBoundingClientRect().width;
      const [step, loss] = losses.reduce((best, one) => Math.abs(x(one[0]) - at) < Math.abs(x(best[0]) - at) ? one : best);
      mark.setAttribute("cx", String(x(step)));
      mark.setAttribute("cy", String(y(loss)));
      mark.setAttribute("visibility", "visible");
      say(caption, `Step ${number(step)}: ${loss.toFixed(4)} nats per supervised token.`);
    });
    picture.addEventListener("pointerleave", () => { mark.setAttribute("visibility", "hidden"); say(caption, summary); });
    say(caption, summary);
    part("curve").querySelector(".drawing").replaceChildren(picture);
  }

  let shownAnswers = "";
  function showAnswers(answers) {
    part("answers").hidden = !answers.length;
    if (shownAnswers === JSON.stringify(answers)) return;
    shownAnswers = JSON.stringify(answers);
    const list = element("dl");
    for (const { task, prompt, answer } of answers) {
      const asked = element("dd"), said = element("dd");
      asked.append(element("pre", prompt));
      said.append(element("pre", answer || "(nothing)", "said"));
      asked.firstChild.tabIndex = said.firstChild.tabIndex = 0; // a long one is scrolled by keys
      asked.dir = said.dir = "auto";
      list.append(element("dt", task), asked, said);
    }
    say(part("answers").querySelector("summary"), `First answers (${number(answers.length)})`);
    part("answers").querySelector("div").replaceChildren(list);
  }

  let shownStages = "";
  function showStages(stages) {
    part("stages").hidden = !stages.length;
    const now = JSON.stringify(stages);
    if (!part("stages").open || now === shownStages) return;
    shownStages = now;
    part("stages").querySelector("tbody").replaceChildren(...stages.map(one => {
      const row = element("tr");
      row.append(element("td", one.kind, "text"), element("td", one.name, "text"));
      const log = one.reason && one.log ? ` (log: ${one.log})` : "";
      row.append(element("td", one.reason ? `${one.state}: ${one.reason}${log}` : one.state, one.reason ? "text down" : "text"));
      row.append(element("td", one.seconds === null ? "" : duration(one.seconds)));
      return row;
    }));
  }

  function show(found) {
    say(part("state"), sentence(found));
    part("state").className = found.status ? found.status.state.replace(" ", "-") : "gone";
    if (found.status) {
      showAll(found.status);
      showStage(found.status);
      showStages(found.status.stages);
      const remarks = [...found.status.remarks, ...(found.problem ? [found.problem] : [])];
      part("remarks").hidden = !remarks.length;
      if (part("remarks").textContent !== remarks.join("")) part("remarks").replaceChildren(...remarks.map(one => element("li", one)));
    }
    if (found.page !== version() && !isReplaced) {
      part("news").hidden = false;
      if (!isTouched) replacePage();
    }
  }

  let newest = null;
  async function follow() {
    try {
      const answer = await fetch("/status", { cache: "no-store" });
      if (!answer.ok) throw new Error(String(answer.status));
      newest = await answer.json();
      show(newest);
    } catch {
      say(part("state"), "lingraft report --watch does not answer any more: it was ended. What stands here is as it was then; the run does not need it.");
      part("state").className = "gone";
    }
    clearTimeout(waiting); // of another look that was under way
    waiting = setTimeout(follow, document.hidden ? WHILE_HIDDEN : EVERY);
  }

  let waiting = 0;
  document.addEventListener("DOMContentLoaded", () => {
    restore();
    part("news").querySelector("button").addEventListener("click", replacePage);
    part("stages").addEventListener("toggle", () => { if (newest?.status) showStages(newest.status.stages); });
    for (const name of ["pointerdown", "keydown"]) document.addEventListener(name, () => { isTouched = true; });
    document.addEventListener("visibilitychange", () => { if (!document.hidden) { clearTimeout(waiting); follow(); } });
    follow();
  });
})();
