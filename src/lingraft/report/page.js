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
    document.addEventListener("keydown", event => { if (event.key === "Escape") hide(); });
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
    for (let fold = document.getElementById(decodeURIComponent(location.hash.slice(1)))?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  }

  document.addEventListener("DOMContentLoaded", () => {
    themeButton();
    followReading();
    closeMenus();
    tips();
    document.querySelectorAll(".table").forEach(liveTable);
    unfoldForPaper();
    addEventListener("hashchange", openTarget);
    openTarget();
  });
})();
