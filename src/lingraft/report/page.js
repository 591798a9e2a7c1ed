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
    }, { rootMargin: "0px 0px -60% 0px" });
    document.querySelectorAll("main > section").forEach(section => watcher.observe(section));
  }

  document.addEventListener("DOMContentLoaded", () => {
    themeButton();
    followReading();
  });
})();
