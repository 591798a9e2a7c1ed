"use strict";
// The behaviour of a report's page. Without it all can be read; it adds sorting, filters, live figures and files to save.
// Texts of models and data sets only ever become text (textContent), never markup, code or an address.
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  // Light or dark: as the system has it, or as was chosen in this visit.
  const kept = (() => { try { return sessionStorage; } catch { return null; } })();
  const chosen = kept?.getItem("lingraft-theme");
  if (chosen) root.dataset.theme = chosen;

  /** @param {string} tag @param {Record<string, string>} attributes @param {(Node | string)[]} content */
  function element(tag, attributes = {}, ...content) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...content);
    return made;
  }

  /** @param {string} text @param {() => void} act @param {Record<string, string>} attributes */
  function button(text, act, attributes = {}) {
    const made = element("button", { type: "button", ...attributes }, text);
    made.addEventListener("click", act);
    return made;
  }

  function themeButton() {
    const isDark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
    const made = button("", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      kept?.setItem("lingraft-theme", root.dataset.theme);
      say();
    }, { id: "theme" });
    const say = () => { made.textContent = isDark() ? "☀ Light" : "☾ Dark"; };
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", say);
    say();
    document.querySelector("body > header").append(made);
  }

  // Which section is being read, in the table of contents.
  function followReading() {
    const links = new Map([...document.querySelectorAll("nav a")].map(link => [link.hash.slice(1), link]));
    const seen = new Set();
    const watcher = new IntersectionObserver(entries => {
      for (const entry of entries) entry.isIntersecting ? seen.add(entry.target.id) : seen.delete(entry.target.id);
      const current = [...links.keys()].find(name => seen.has(name));
      if (current) links.forEach((link, name) => name === current ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current"));
    }, { rootMargin: "-15% 0px -60% 0px" });
    document.querySelectorAll("main > section").forEach(section => watcher.observe(section));
  }

  /** What the page carries packed: gzip in base64, so that it costs little until it is asked for.
   * @param {string} id @returns {Promise<string>} */
  async function unpacked(id) {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), one => one.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }

  /** @type {Map<string, Promise<any>>} */
  const parsed = new Map();
  /** @param {string} id */
  function data(id) {
    if (!parsed.has(id)) parsed.set(id, unpacked(id).then(JSON.parse));
    return parsed.get(id);
  }

  /** @param {string} name @param {Blob} content */
  function save(name, content) {
    const link = element("a", { href: URL.createObjectURL(content), download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  }

  /** A menu of files to save. What fails says so in the menu.
   * @param {string} what @param {[string, () => Promise<void>][]} choices */
  function saveMenu(what, choices) {
    const menu = element("details", { class: "save" }, element("summary", { "aria-label": `Save ${what}` }, "Save"));
    const list = element("div");
    for (const [form, make] of choices) {
      const one = button(form, () => make().then(
        () => { menu.open = false; menu.querySelector("summary").focus(); },
        error => { one.textContent = `${form}: this browser cannot make it (${error.message})`; },
      ));
      list.append(one);
    }
    menu.append(list);
    menu.addEventListener("toggle", () => { // inside of the window
      list.style.translate = "none";
      list.style.translate = `${Math.min(0, root.clientWidth - 8 - list.getBoundingClientRect().right)}px`;
    });
    return menu;
  }

  function closeMenus() {
    const close = except => document.querySelectorAll(".save[open]").forEach(menu => { if (!menu.contains(except)) menu.open = false; });
    document.addEventListener("click", event => close(event.target));
    document.addEventListener("focusin", event => close(event.target));
    document.addEventListener("keydown", event => {
      const menu = event.key === "Escape" && document.querySelector(".save[open]");
      if (menu) { menu.open = false; menu.querySelector("summary").focus(); }
    });
  }

  // Tables.
  const ABSENT = new Set(["", "-", "failed", "pending"]);
  const words = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

  /** What an entry is sorted by: its exact value, else the number or the text that it shows; null: it is absent.
   * @param {HTMLTableCellElement} cell @returns {number | string | null} */
  function sortedBy(cell) {
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    const text = cell.textContent.trim();
    if (ABSENT.has(text)) return null;
    return /^[+-]?\d[\d,]*(\.\d+)?( ?[%A-Za-z]+)?$/.test(text) ? parseFloat(text.replaceAll(",", "")) : text;
  }

  /** @param {HTMLTableElement} table @param {HTMLTableRowElement[]} rows in their first order */
  function sort(table, rows) {
    const heads = [...table.tHead.rows[0].cells];
    const place = heads.findIndex(head => head.hasAttribute("aria-sort"));
    table.classList.toggle("sorted", place >= 0);
    if (place < 0) return table.tBodies[0].append(...rows);
    const sign = heads[place].getAttribute("aria-sort") === "ascending" ? 1 : -1;
    const keyed = rows.map(row => ({ row, key: sortedBy(row.cells[place]) }));
    keyed.sort((a, b) => {
      if (a.key === null || b.key === null) return Number(a.key === null) - Number(b.key === null);
      if (typeof a.key === "number" && typeof b.key === "number") return sign * (a.key - b.key);
      return sign * words.compare(String(a.key), String(b.key));
    });
    table.tBodies[0].append(...keyed.map(one => one.row));
  }

  const NEXT = { none: "ascending", ascending: "descending", descending: null };
  const MANY_ROWS = 8;

  /** @param {HTMLElement} box */
  function liveTable(box) {
    const table = box.querySelector("table"), rows = [...table.tBodies[0].rows];
    const heads = [...table.tHead.rows[0].cells];
    const title = box.querySelector(".frame").getAttribute("aria-label");
    heads.forEach((head, place) => {
      const meaning = box.querySelector(`.meanings dd[data-columns~="${place}"]`);
      const tips = [meaning?.id, head.dataset.term].filter(id => id && document.getElementById(id)).join(" ");
      const click = () => {
        const next = NEXT[head.getAttribute("aria-sort") ?? "none"];
        heads.forEach(other => other.removeAttribute("aria-sort"));
        if (next) head.setAttribute("aria-sort", next);
        sort(table, rows);
      };
      const sorter = button("", click, tips ? { "data-tip": tips, "aria-describedby": tips } : {});
      sorter.append(...head.childNodes);
      head.append(sorter);
    });
    const tools = element("div", { class: "tools" });
    if (rows.length > MANY_ROWS) {
      const field = element("input", { type: "search", placeholder: "Filter rows", "aria-label": `Filter rows of ${title}` });
      const count = element("output", { "aria-live": "polite" });
      const texts = rows.map(row => row.textContent.toLowerCase());
      field.addEventListener("input", () => {
        const asked = field.value.toLowerCase().split(/\s+/).filter(Boolean);
        rows.forEach((row, i) => { row.hidden = !asked.every(word => texts[i].includes(word)); });
        count.textContent = asked.length ? `${rows.filter(row => !row.hidden).length} of ${rows.length} rows` : "";
      });
      tools.append(field, count);
    }
    if (Number(box.dataset.detail)) {
      const all = button(`All columns (${box.dataset.detail} more)`, () => {
        all.setAttribute("aria-pressed", String(table.classList.toggle("all")));
        stick(table);
      }, { "aria-pressed": "false" });
      tools.append(all);
    }
    if (box.dataset.saved !== undefined) {
      const choices = [["CSV", "csv", "text/csv"], ["LaTeX", "tex", "text/x-tex"], ["Markdown", "md", "text/markdown"]];
      tools.append(saveMenu(`the table ${title}`, choices.map(([form, ending, type]) => [form, async () => {
        const texts = (await data("packed-tables"))[box.dataset.name];
        save(`${box.dataset.name}.${ending}`, new Blob([texts[form.toLowerCase()]], { type: `${type};charset=utf-8` }));
      }])));
    }
    if (tools.hasChildNodes()) box.prepend(tools);
    new ResizeObserver(() => stick(table)).observe(box);
  }

  /** Keep all columns that name a row in sight where they leave room for others; else the first alone.
   * @param {HTMLTableElement} table */
  function stick(table) {
    const keys = [...table.tHead.rows[0].cells].filter(head => head.classList.contains("key"));
    let left = 0;
    const places = keys.map(key => { const own = left; left += key.offsetWidth; return own; });
    const fits = left <= 0.6 * table.parentElement.clientWidth;
    places.forEach((place, i) => table.style.setProperty(`--left-${i}`, fits ? `${place}px` : "auto"));
  }

  // Figures. What stands in the page is drawn already; near the view it is drawn anew, so that it tells its values.
  /** @type {Promise<void> | undefined} */
  let engine;
  function loadedEngine() {
    engine ??= unpacked("packed-engine").then(text => {
      const script = element("script");
      script.textContent = text; // the page's policy names its hash
      document.head.append(script);
      if (!window.drawFigure) throw new Error("the engine does not run here");
    });
    return engine;
  }

  /** Make a specification narrower: plots side by side go below each other, then each gets narrower.
   * @param {any} spec @param {number} room in pixels @param {number} width of the figure as it was drawn */
  function fit(spec, room, width) {
    const parts = spec.vconcat ?? spec.hconcat ?? spec.concat;
    if (spec.hconcat) { spec.vconcat = spec.hconcat; delete spec.hconcat; }
    if (spec.concat) spec.columns = 1;
    if (parts) return parts.forEach(part => fit(part, room, Math.max(width, (part.width ?? 0) + 90)));
    const inner = spec.spec ?? spec, columns = spec.spec ? spec.columns ?? 1 : 1;
    const around = Math.max(20, width / columns - inner.width);
    if (columns > 1) spec.columns = Math.max(1, Math.min(columns, Math.floor(room / (inner.width + around))));
    if (typeof inner.width === "number") inner.width = Math.max(140, Math.min(inner.width, Math.floor(room / (spec.columns ?? 1) - around)));
  }

  /** All rows of a figure's data. @param {any} spec @returns {Record<string, unknown>[]} */
  function rowsOf(spec) {
    const found = new Set();
    const look = part => {
      if (!part || typeof part !== "object") return;
      if (Array.isArray(part.data?.values)) found.add(part.data.values);
      if (part.datasets) Object.values(part.datasets).forEach(rows => found.add(rows));
      for (const inner of [part.spec, ...(part.layer ?? []), ...(part.vconcat ?? []), ...(part.hconcat ?? []), ...(part.concat ?? [])]) look(inner);
    };
    look(spec);
    return [...found].flat();
  }

  /** @param {Record<string, unknown>[]} rows */
  function csvOf(rows) {
    const names = [...new Set(rows.flatMap(Object.keys))];
    const field = value => {
      let text = value === null || value === undefined ? "" : String(value);
      if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`; // else a spreadsheet would run it
      return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    return [names, ...rows.map(row => names.map(name => row[name]))].map(row => row.map(field).join(",")).join("\n") + "\n";
  }

  const MOST_VALUES = 300;

  /** What is shown on hover, as a table: for the keyboard, for fingers and for screen readers.
   * @param {any} spec @param {string} title */
  function valuesOf(spec, title) {
    /** @type {Map<string, string>} */
    const shown = new Map();
    const look = part => {
      for (const one of [part.encoding?.tooltip ?? []].flat()) if (one.field) shown.set(one.field, one.title ?? one.field);
      for (const inner of [part.spec, ...(part.layer ?? []), ...(part.vconcat ?? []), ...(part.hconcat ?? []), ...(part.concat ?? [])]) if (inner) look(inner);
    };
    look(spec);
    if (!shown.size) for (const field of rowsOf(spec).flatMap(Object.keys)) shown.set(field, field);
    const said = value => value === undefined || value === null ? "" : String(value);
    const texts = rowsOf(spec).filter(row => [...shown.keys()].some(field => field in row)).map(row => [...shown.keys()].map(field => said(row[field])));
    const rows = [...new Map(texts.map(row => [JSON.stringify(row), row])).values()];
    const line = (row, tag) => element("tr", {}, ...row.map(text => element(tag, { class: "text" }, text)));
    const table = element("table", {}, element("thead", {}, line([...shown.values()], "th")), element("tbody", {}, ...rows.slice(0, MOST_VALUES).map(row => line(row, "td"))));
    const rest = rows.length > MOST_VALUES ? [element("p", { class: "caption" }, `The first ${MOST_VALUES} of ${rows.length}; the saved values are all.`)] : [];
    return [element("div", { class: "frame", tabindex: "0", role: "region", "aria-label": `Values of ${title}` }, table), ...rest];
  }

  /** A figure as a file of its own, in black on white. @param {SVGElement} svg */
  function standingAlone(svg) {
    const copy = /** @type {SVGElement} */ (svg.cloneNode(true));
    copy.setAttribute("color", "#1b2330");
    return new XMLSerializer().serializeToString(copy);
  }

  /** @param {SVGElement} svg @returns {Promise<Blob>} */
  async function png(svg, scale = 3) {
    const picture = new Image();
    picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(standingAlone(svg))}`;
    await picture.decode();
    const canvas = /** @type {HTMLCanvasElement} */ (element("canvas"));
    canvas.width = scale * Number(svg.getAttribute("width"));
    canvas.height = scale * Number(svg.getAttribute("height"));
    const context = canvas.getContext("2d");
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    return new Promise((done, failed) => canvas.toBlob(made => made ? done(made) : failed(new Error("no picture")), "image/png"));
  }

  /** @param {HTMLElement} figure */
  function liveFigure(figure) {
    const { name } = figure.dataset, drawing = figure.querySelector(".drawing"), still = drawing.querySelector("svg");
    const natural = Number(still.getAttribute("width")), title = drawing.querySelector(".still").getAttribute("aria-label");
    let drawn = 0; // the room that it was drawn for
    let view = null;
    const draw = async () => {
      const room = figure.clientWidth;
      if (!room || (drawn && Math.min(room, natural) === Math.min(drawn, natural))) return;
      drawn = room;
      const host = element("div", { class: "live", role: "img", "aria-label": title });
      try {
        const spec = structuredClone((await data("packed-figures"))[name]);
        await loadedEngine();
        drawing.append(host);
        let made;
        for (let width = natural, tries = 0; ; tries += 1) {
          if (width > room) {
            spec.config.legend.columns = 2;
            fit(spec, room, width);
          }
          made?.finalize();
          made = await window.drawFigure(host, structuredClone(spec));
          width = Number(host.querySelector("svg").getAttribute("width"));
          if (width <= room || tries === 2) break;
        }
        view?.finalize();
        view = made;
        drawing.querySelectorAll(".live").forEach(old => { if (old !== host) old.remove(); });
        drawing.classList.add("is-live");
        drawing.toggleAttribute("tabindex", host.querySelector("svg").width.baseVal.value > room);
      } catch (error) { // then it stays as it stands in the page
        drawing.dataset.problem = String(error);
        host.remove();
      }
    };
    if (document.getElementById("packed-engine")) {
      const near = new IntersectionObserver(entries => {
        if (!entries.some(entry => entry.isIntersecting)) return;
        near.disconnect();
        draw();
        let waiting = 0;
        new ResizeObserver(() => { clearTimeout(waiting); waiting = setTimeout(draw, 250); }).observe(figure);
      }, { rootMargin: "600px 0px" });
      near.observe(figure);
    }
    /** @type {[string, () => Promise<void>][]} */
    const choices = [
      ["SVG", async () => save(`${name}.svg`, new Blob([standingAlone(still)], { type: "image/svg+xml" }))],
      ["PNG", async () => save(`${name}.png`, await png(still))],
    ];
    const pdf = document.getElementById(`pdf-${name}`);
    if (pdf) choices.push(["PDF", async () => save(`${name}.pdf`, new Blob([Uint8Array.from(atob(pdf.textContent), one => one.charCodeAt(0))], { type: "application/pdf" }))]);
    choices.push(["Values as CSV", async () => save(`${name}.csv`, new Blob([csvOf(rowsOf((await data("packed-figures"))[name]))], { type: "text/csv;charset=utf-8" }))]);
    const heading = document.getElementById(`title-${name}`)?.textContent ?? name;
    const values = element("details", { class: "values" }, element("summary", {}, "Values"));
    values.addEventListener("toggle", async () => {
      if (values.open && values.childElementCount === 1) values.append(...valuesOf((await data("packed-figures"))[name], heading));
    });
    figure.querySelector("figcaption").append(saveMenu(`the figure ${heading}`, choices));
    figure.append(values);
  }

  // What a word, or a column, means: beside it, on hover and on focus.
  function tips() {
    const tip = element("div", { id: "tip", role: "tooltip", hidden: "" });
    document.body.append(tip);
    let leaving = 0;
    const hide = () => { tip.hidden = true; };
    const show = trigger => {
      clearTimeout(leaving);
      tip.replaceChildren(...trigger.dataset.tip.split(" ").map(id => element("p", {}, document.getElementById(id).textContent)));
      tip.hidden = false;
      const at = trigger.getBoundingClientRect(), own = tip.getBoundingClientRect();
      const below = at.bottom + 6 + own.height <= innerHeight || at.top < own.height + 6;
      tip.style.top = `${below ? at.bottom + 6 : at.top - own.height - 6}px`;
      tip.style.left = `${Math.max(8, Math.min(at.left, innerWidth - own.width - 8))}px`;
    };
    const of = event => event.target instanceof Element ? event.target.closest("[data-tip]") : null;
    document.addEventListener("pointerover", event => {
      const trigger = of(event);
      if (trigger) show(trigger);
      else if (tip.contains(event.target)) clearTimeout(leaving);
    });
    document.addEventListener("pointerout", event => {
      if (of(event) || tip.contains(event.target)) { clearTimeout(leaving); leaving = setTimeout(hide, 200); }
    });
    document.addEventListener("focusin", event => { const trigger = of(event); if (trigger?.matches(":focus-visible")) show(trigger); });
    document.addEventListener("focusout", event => { if (of(event)) hide(); });
    document.addEventListener("keydown", event => {
      if (event.key !== "Escape") return;
      hide();
      document.getElementById("vg-tooltip-element")?.classList.remove("visible"); // a figure's
    });
    document.addEventListener("scroll", hide, { passive: true, capture: true });
  }

  // What is folded is opened for paper, and closed again.
  function unfoldForPaper() {
    /** @type {HTMLDetailsElement[]} */
    let opened = [];
    addEventListener("beforeprint", () => {
      opened = [...document.querySelectorAll("details.fold:not([open])")];
      opened.forEach(fold => { fold.open = true; });
    });
    addEventListener("afterprint", () => opened.forEach(fold => { fold.open = false; }));
  }

  // A link to a place inside of what is folded opens it.
  function openTarget() {
    let name = location.hash.slice(1);
    try { name = decodeURIComponent(name); } catch { return; } // typed by hand
    for (let fold = document.getElementById(name)?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  }

  document.addEventListener("DOMContentLoaded", () => {
    themeButton();
    followReading();
    closeMenus();
    tips();
    document.querySelectorAll(".table").forEach(liveTable);
    document.querySelectorAll("figure[data-name]").forEach(liveFigure);
    unfoldForPaper();
    addEventListener("hashchange", openTarget);
    openTarget();
  });
})();
