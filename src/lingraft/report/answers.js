// Answers side by side: unpacks what the page carries (report/side_by_side.py), and shows it with filters. What models
// and data say only ever goes through textContent.
// @ts-check
(() => {
  "use strict";
  const PER_PAGE = 5;
  const CLIPPED = 800; // characters of a text that stand there until the reader asks for all
  // What is true of an answer: a sum of these, as in side_by_side.py.
  const FLAGS = { wrong: 1, empty: 2, looping: 4, truncated: 8, lost: 16, gained: 32 };
  const OUTCOMES = /** @type {const} */ ({
    all: ["all items", () => true],
    changed: ["lost, gained or wrong language", (flags) => (flags & (FLAGS.lost | FLAGS.gained | FLAGS.wrong)) > 0],
    lost: ["lost", (flags) => (flags & FLAGS.lost) > 0],
    gained: ["gained", (flags) => (flags & FLAGS.gained) > 0],
    same: ["about the same", (flags) => (flags & (FLAGS.lost | FLAGS.gained)) === 0],
    wrong: ["wrong language", (flags) => (flags & FLAGS.wrong) > 0],
    bad: ["empty, looping or truncated", (flags) => (flags & (FLAGS.empty | FLAGS.looping | FLAGS.truncated)) > 0],
  });
  const WORDS = [
    [FLAGS.lost, "▼ lost", "lost"], [FLAGS.gained, "▲ gained", "gained"], [FLAGS.wrong, "wrong language", "wrong"],
    [FLAGS.empty, "empty", ""], [FLAGS.looping, "looping", ""], [FLAGS.truncated, "truncated", ""],
  ];
  const MARKS = /(⟦|⟧|<[^<>\s]*>|\[\/?[A-Z_]+\])/; // of chat templates
  const TAG = /^[a-z]{2,3}(-[a-z0-9]{1,8})*$/i; // of a language (BCP-47)
  const LINK = "#answers?"; // what a permalink begins with

  /** Return an element with its properties, attributes (of names with a hyphen, or `role`) and children. */
  function make(name, properties = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (key === "role" || key.includes("-")) element.setAttribute(key, String(value));
      else element[key] = value;
    }
    element.append(...children);
    return element;
  }

  async function unpacked(text) {
    const letters = atob(text.trim());
    const packed = new Uint8Array(letters.length);
    for (let i = 0; i < letters.length; i++) packed[i] = letters.charCodeAt(i);
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  /** Return a text in a language as it is: marks of chat templates paler, long ones clipped at the end, or at their
   * beginning. Fonts and screen readers follow the language; it is "" where that is not known. */
  function said(text, language, keepsEnd = false) {
    if (!text.trim()) return make("div", { className: "said faint", textContent: "(empty)" });
    const place = make("div", { className: "said", dir: "auto", lang: TAG.test(language) ? language : "" });
    const show = (shown) =>
      place.replaceChildren(
        ...shown.split(MARKS).map((part, i) => (i % 2 ? make("span", { className: "mark", textContent: part }) : part)),
      );
    if (text.length <= CLIPPED + 200) {
      show(text);
      return place;
    }
    const half = /[\ud800-\udbff]$/; // no character is cut in two
    const kept = keepsEnd
      ? "… " + text.slice(-CLIPPED).replace(/^[\udc00-\udfff]/, "")
      : text.slice(0, CLIPPED).replace(half, "") + " …";
    const more = make("button", { type: "button", className: "more" });
    let isClipped = false;
    const turn = () => {
      isClipped = !isClipped;
      show(isClipped ? kept : text);
      more.textContent = isClipped ? `show all (${(text.length - CLIPPED).toLocaleString("en")} more characters)` : "show less";
      more.setAttribute("aria-expanded", String(!isClipped));
    };
    more.addEventListener("click", turn);
    turn();
    return make("div", {}, place, more);
  }

  /** Build the view of one block over its data. */
  function build(place, data) {
    const { models, texts, items, answers, scores, flags, shown } = data;
    let lower = null; // texts for the search, made once
    const of = (item, what) => texts[items[item][{ task: 0, language: 1, name: 2, prompt: 3, reference: 4 }[what]]];
    const every = (what) => [...new Set(items.map((_, item) => of(item, what)))].sort();
    const has = (outcome, item, chosen) =>
      chosen.some((model) => answers[item][model] >= 0 && OUTCOMES[outcome][1](flags[item][model]));
    const start = () => ({ language: "", task: "", outcome: "", of: "", search: "", models: [...shown], page: 0, item: -1 });
    const firstOutcome = ["lost", "changed"].find((one) => items.some((_, item) => has(one, item, shown))) ?? "all";
    let state = { ...start(), outcome: firstOutcome };
    // A permalink names an item by what it is, not by its place: the page may be made anew.
    const names = new Map();
    const links = items.map((_, item) => {
      const name = [of(item, "task"), of(item, "language"), of(item, "name")].join("/");
      const times = names.get(name) ?? 0;
      names.set(name, times + 1);
      return times ? `${name}~${times + 1}` : name;
    });

    const form = make("form", { role: "search" });
    form.setAttribute("aria-label", "Filter the answers");
    form.addEventListener("submit", (event) => event.preventDefault());
    const choice = (title, key, options) => {
      const select = make("select", {}, ...options.map(([value, text]) => make("option", { value, textContent: text })));
      select.addEventListener("change", () => change({ [key]: select.value }));
      form.append(make("label", {}, title, select));
      return select;
    };
    const fields = {
      language: choice("Language", "language", [["", "all"], ...every("language").map((one) => [one, one])]),
      task: choice("Task", "task", [["", "all"], ...every("task").map((one) => [one, one])]),
      outcome: choice("Outcome", "outcome", Object.entries(OUTCOMES).map(([key, [text]]) => [key, text])),
      of: choice("of", "of", [["", "any model shown"], ...models.map((title, model) => [String(model), title])]),
      search: make("input", { type: "search", autocomplete: "off", spellcheck: false }),
    };
    let waiting = 0;
    fields.search.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => change({ search: fields.search.value }), 200);
    });
    form.append(make("label", {}, "Text", fields.search));
    const reset = make("button", { type: "button", textContent: "Reset" });
    reset.addEventListener("click", () => change({ ...start(), outcome: firstOutcome }));
    form.append(reset);

    const summary = make("summary");
    const list = make("ul");
    const find = make("input", { type: "search", autocomplete: "off" });
    find.setAttribute("aria-label", "Find a model");
    const boxes = models.map((title, model) => {
      const box = make("input", { type: "checkbox" });
      box.addEventListener("change", () => {
        const chosen = boxes.flatMap((one, i) => (one.checked ? [i] : []));
        change({ models: chosen.length ? chosen : [model] });
      });
      list.append(make("li", {}, make("label", {}, box, make("bdi", { textContent: title }))));
      return box;
    });
    find.addEventListener("input", () => {
      const wanted = find.value.toLowerCase();
      [...list.children].forEach((row, i) => (row.hidden = !models[i].toLowerCase().includes(wanted)));
    });
    const picker = make("details", { className: "models" }, summary, ...(models.length > 10 ? [find] : []), list);

    const count = make("span", { role: "status" });
    const previous = make("button", { type: "button", textContent: "‹ Previous" });
    const next = make("button", { type: "button", textContent: "Next ›" });
    const turning = make("nav", {}, previous, next, count);
    turning.setAttribute("aria-label", "Pages of answers");
    const pages = make("div");
    const turn = (by) => {
      change({ page: state.page + by, item: -1 }, true);
      form.scrollIntoView({ block: "nearest" });
    };
    previous.addEventListener("click", () => turn(-1));
    next.addEventListener("click", () => turn(1));

    function found() {
      const wanted = state.search.toLowerCase();
      if (wanted) lower ??= texts.map((text) => text.toLowerCase());
      const chosen = state.of ? [Number(state.of)] : state.models;
      const result = [];
      for (let item = 0; item < items.length; item++) {
        if (state.language && of(item, "language") !== state.language) continue;
        if (state.task && of(item, "task") !== state.task) continue;
        if (state.outcome !== "all" && !has(state.outcome, item, chosen)) continue;
        if (wanted) {
          const own = [...items[item].slice(2), ...state.models.map((model) => answers[item][model]).filter((text) => text >= 0)];
          if (!own.some((text) => lower[text].includes(wanted))) continue;
        }
        result.push(item);
      }
      return result;
    }

    function reply(item, model) {
      const box = make("div", { className: "reply" }, make("h5", {}, make("bdi", { textContent: models[model] })));
      if (answers[item][model] < 0) {
        box.append(make("p", { className: "faint", textContent: "Not asked this." }));
        return box;
      }
      const line = make("p", { className: "score", textContent: `score ${scores[item][model].toFixed(2)}` });
      for (const [flag, word, look] of WORDS) {
        if (flags[item][model] & flag) line.append(" ", make("b", { className: `outcome ${look}`, textContent: word }));
      }
      box.append(line, said(texts[answers[item][model]], flags[item][model] & FLAGS.wrong ? "" : of(item, "language")));
      return box;
    }

    function card(item) {
      const link = make("a", { href: linkOf({ ...state, item }), textContent: "link" });
      link.setAttribute("aria-label", `Link to ${links[item]}`);
      link.addEventListener("click", (event) => {
        event.preventDefault();
        change({ item }, true);
      });
      return make(
        "article",
        { className: item === state.item ? "asked linked" : "asked" },
        make("h4", {}, make("bdi", { textContent: of(item, "task") }), ", ", make("bdi", { textContent: of(item, "language") }),
          ", ", make("bdi", { textContent: of(item, "name") }), " ", link),
        make("dl", {},
          make("div", {}, make("dt", { textContent: "Prompt" }), make("dd", {}, said(of(item, "prompt"), of(item, "language"), true))),
          make("div", {}, make("dt", { textContent: "Reference" }), make("dd", {}, said(of(item, "reference"), of(item, "language"))))),
        make("div", { className: "replies" }, ...state.models.map((model) => reply(item, model))),
      );
    }

    function draw() {
      for (const key of ["language", "task", "outcome", "of", "search"]) {
        if (fields[key].value !== state[key]) fields[key].value = state[key];
      }
      boxes.forEach((box, model) => (box.checked = state.models.includes(model)));
      summary.textContent = `Models shown: ${state.models.length} of ${models.length}`;
      const own = found();
      if (state.item >= 0 && own.includes(state.item)) state.page = Math.floor(own.indexOf(state.item) / PER_PAGE);
      const last = Math.max(0, Math.ceil(own.length / PER_PAGE) - 1);
      state.page = Math.min(Math.max(0, state.page), last);
      const first = state.page * PER_PAGE;
      const here = own.slice(first, first + PER_PAGE);
      count.textContent = own.length
        ? `${first + 1} to ${first + here.length} of ${own.length.toLocaleString("en")} items (${items.length.toLocaleString("en")} in all)`
        : `No item of ${items.length.toLocaleString("en")} fits; choose another filter.`;
      previous.disabled = state.page === 0;
      next.disabled = state.page === last;
      pages.replaceChildren(...here.map(card));
    }

    function linkOf(of) {
      const query = new URLSearchParams();
      for (const key of ["language", "task", "search"]) if (of[key]) query.set(key, of[key]);
      query.set("outcome", of.outcome);
      if (of.of) query.set("of", models[Number(of.of)]);
      if (String(of.models) !== String(shown)) for (const model of of.models) query.append("model", models[model]);
      if (of.item >= 0) query.set("item", links[of.item]);
      else if (of.page) query.set("page", String(of.page + 1));
      return LINK + query;
    }

    function change(what, keepsPage = false) {
      state = { ...state, ...(keepsPage ? {} : { page: 0, item: -1 }), ...what };
      draw();
      try {
        history.replaceState(null, "", linkOf(state));
      } catch {
        // A page inside of another one has no address of its own; then links cannot be made.
      }
    }

    /** Show what the address names; what it does not know of that is left out. */
    function follow() {
      if (!location.hash.startsWith(LINK)) return;
      const query = new URLSearchParams(location.hash.slice(LINK.length));
      const known = (key, values) => (values.includes(query.get(key)) ? query.get(key) : "");
      const chosen = query.getAll("model").flatMap((title) => (models.includes(title) ? [models.indexOf(title)] : []));
      state = {
        ...start(),
        language: known("language", every("language")),
        task: known("task", every("task")),
        search: query.get("search") ?? "",
        outcome: known("outcome", Object.keys(OUTCOMES)) || "all",
        of: models.includes(query.get("of")) ? String(models.indexOf(query.get("of"))) : "",
        page: Math.max(0, (parseInt(query.get("page") ?? "1", 10) || 1) - 1),
        item: links.indexOf(query.get("item")),
      };
      if (chosen.length) state.models = [...new Set(chosen)];
      draw();
      if (query.has("item") && state.item < 0) count.textContent += " The item that the link names is not on this page.";
      (pages.querySelector(".linked") ?? place).scrollIntoView();
    }

    place.classList.add("live");
    place.prepend(make("div", { className: "browse" }, form, picker, turning, pages));
    draw();
    follow();
    window.addEventListener("hashchange", follow);
  }

  for (const place of document.querySelectorAll("[data-packed]")) {
    const source = document.getElementById(place.dataset.packed);
    const say = (text) => place.prepend(make("p", { className: "faint", role: "status", textContent: text }));
    if (typeof DecompressionStream === "undefined") {
      say("This browser is too old to unpack the answers. Use another one, or: lingraft show predictions RUN. Some examples:");
      continue;
    }
    let isBegun = false;
    const begin = async () => {
      if (isBegun) return;
      isBegun = true;
      watch.disconnect();
      try {
        build(place, await unpacked(source.textContent));
        source.remove();
      } catch (error) {
        say(`The answers cannot be unpacked (${error}); make the page again: lingraft report RUN. Some examples:`);
      }
    };
    // Only when the reader comes near: a large report opens without them.
    const watch = new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && begin(), { rootMargin: "800px" });
    watch.observe(place);
    const linked = () => location.hash.startsWith(LINK) && begin();
    linked();
    window.addEventListener("hashchange", linked);
  }
})();
