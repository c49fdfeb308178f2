// One turn of the conversation as elements: what the user said, calls, pictures, text, and what it took.

import { h, itemPath, plural, seconds, thumbnail } from "./dom.js";
import { getJson } from "./client.js";

const LINK = /\[#(\d+)((?:\\.|[^\]\\])*)\]\(item:([^)\s]*)\)/g;

// known: every item of the conversation by its number, so that "#2" in the user's words shows its picture.
export function userTurn(text, pictures, known, refer) {
  return h("article", { class: "turn user", "aria-label": "You" },
    pictures.length ? h("div", { class: "sent" }, pictures.map((item) =>
      h("button", { type: "button", class: "picture", title: `Refer to #${item.k}`, onclick: () => refer(item) }, thumbnail(item, 0, "your picture"), h("span", { class: "badge" }, `#${item.k}`)))) : null,
    text ? h("p", { class: "bubble" }, references(text, known)) : null);
}

const references = (text, known) => text.split(/(#\d+(?!\w))/).map((part) => {
  const item = part[0] === "#" ? known.get(Number(part.slice(1))) : undefined;
  return item ? pictured(item) : part;
});

const pictured = (item) => h("span", { class: "pictured", title: item.title ?? "" }, thumbnail(item, 64), `#${item.k}`);

export class AnswerView {
  // refer(item) is called when a picture is clicked; items shown are added to known.
  constructor(refer, tokensPerItem, known) {
    this.refer = refer;
    this.known = known;
    this.tokensPerItem = tokensPerItem;
    this.items = new Map();
    this.fresh = []; // numbers that this turn gave out
    this.said = "";
    this.calls = h("div", { class: "calls" });
    this.grid = h("div", { class: "grid" });
    this.text = h("div", { class: "text" });
    this.wait = h("p", { class: "wait", role: "status" }, h("span", { class: "aperture" }), "looking");
    this.usage = h("p", { class: "usage" });
    this.element = h("article", { class: "turn answer", "aria-label": "Pinhole" }, this.calls, this.grid, this.text, this.wait, this.usage);
  }

  event(event) {
    if (event.type === "call") this.#call(event);
    if (event.type === "items") this.#items(event);
    if (event.type === "problem") this.#problem(event);
    if (event.type === "finished") this.#finished(event.usage);
  }

  add(delta) {
    this.said += delta;
    this.wait.hidden = true;
    this.#draw(true);
  }

  // The turn is over, well or not: no more waiting marks.
  end(note = "") {
    this.wait.remove();
    this.calls.querySelectorAll(".busy").forEach((chip) => chip.classList.remove("busy"));
    this.#draw(false);
    if (note) this.element.append(h("p", { class: "note" }, note));
  }

  fail(message, again) {
    this.end();
    this.element.append(h("div", { class: "error", role: "alert" }, h("p", {}, message), again ? h("button", { type: "button", onclick: again }, "Try again") : null));
  }

  #draw(streaming) {
    this.text.replaceChildren(...paragraphs(this.said, streaming, this));
  }

  #call(event) {
    const words = Object.entries(event.arguments ?? {}).map(([name, value]) =>
      h("span", { class: "argument" }, h("span", { class: "name" }, name), " ", references(typeof value === "string" ? value : JSON.stringify(value), this.known)));
    this.calls.append(h("div", { class: "call busy", "data-call": event.call, title: "a call the assistant made" }, h("span", { class: "tool" }, event.name), words, h("span", { class: "took" })));
  }

  #close(event, words, failed) {
    const chip = event.call === null ? null : this.calls.querySelector(`[data-call="${Number(event.call)}"]`);
    if (!chip) return;
    chip.classList.remove("busy");
    chip.classList.toggle("failed", failed);
    chip.querySelector(".took").textContent = [words, event.seconds === null ? "" : seconds(event.seconds)].filter(Boolean).join(" · ");
  }

  #items(event) {
    this.#close(event, plural(event.items.length, "picture"), false);
    for (const item of event.items) {
      if (this.items.has(item.k)) continue;
      this.items.set(item.k, item);
      if (!this.known.has(item.k)) this.fresh.push(item.k);
      this.known.set(item.k, item);
      this.grid.append(tile(item, this.refer));
    }
  }

  #problem(event) {
    this.#close(event, event.message, true);
    if (event.call === null) this.calls.append(h("div", { class: "call failed" }, event.message));
  }

  #finished(usage) {
    const shown = this.items.size;
    const parts = [];
    if (shown) parts.push(h("b", {}, `${plural(shown, "picture")} = ${plural(shown * this.tokensPerItem, "token")}`));
    if (usage.prompt_tokens) {
      const cached = usage.cached_tokens ? ` (${usage.cached_tokens.toLocaleString("en")} from cache)` : "";
      parts.push(`prompt ${usage.prompt_tokens.toLocaleString("en")}${cached}`, `answer ${(usage.completion_tokens ?? 0).toLocaleString("en")}`);
    }
    if (usage.first_token_s) parts.push(`first token ${seconds(usage.first_token_s)}`);
    if (usage.total_s) parts.push(seconds(usage.total_s));
    this.usage.replaceChildren(...parts.flatMap((part, i) => (i ? [" · ", part] : [part])));
  }
}

function tile(item, refer) {
  const name = item.title || "untitled";
  return h("figure", { class: "tile" },
    h("button", { type: "button", class: "picture", "data-k": item.k, "aria-label": `#${item.k} ${name}: refer to this picture`, title: `Refer to #${item.k}`, onclick: () => refer(item) },
      thumbnail(item, 256, name), h("span", { class: "badge" }, `#${item.k}`)),
    h("button", { type: "button", class: "open", "aria-label": `Details of #${item.k}`, title: "Details", onclick: () => detail(item, refer) }, "⤢"),
    h("figcaption", { class: item.title ? "" : "untitled", title: item.title ?? "" }, name));
}

// Text with links to items as chips; while it streams, a link that is not complete yet is held back.
function paragraphs(said, streaming, { items, known, refer }) {
  const text = streaming ? said.replace(/\[(#[^\]\n]*(\](\([^)\n]*)?)?)?$/, "") : said;
  const lines = text.split("\n").filter((line) => line.trim());
  // The last line of an answer lists what was shown and not mentioned: those stand in the grid already.
  while (lines.length && listsOnly(lines.at(-1), items)) lines.pop();
  return lines.map((line) => h("p", {}, inline(line, known, refer)));
}

function listsOnly(line, items) {
  const ks = [...line.matchAll(LINK)].map((match) => Number(match[1]));
  return ks.length > 0 && ks.every((k) => items.has(k)) && !/[\p{L}\p{N}]/u.test(line.replace(/^(Also shown|Shown):/, "").replace(LINK, ""));
}

function inline(line, known, refer) {
  const out = [];
  let at = 0;
  for (const match of line.matchAll(LINK)) {
    out.push(line.slice(at, match.index));
    at = match.index + match[0].length;
    out.push(mention(match, known, refer));
  }
  out.push(line.slice(at));
  return out.filter((part) => part !== "");
}

function mention([, k, title, id], known, refer) {
  let plain = id;
  try {
    plain = decodeURIComponent(id);
  } catch {
    // not percent-encoded: take it as it stands
  }
  const item = known.get(Number(k)) ?? { k: Number(k), id: plain, title: title.replace(/\\(.)/g, "$1").trim() };
  return h("button", { type: "button", class: "mention", title: `Refer to #${k}`, onclick: () => refer(item) }, thumbnail(item, 64), h("span", {}, h("b", {}, `#${k}`), item.title ? ` ${item.title}` : ""));
}

// -- one picture, large -------------------------------------------------------------------------------

export async function detail(item, refer) {
  const dialog = document.getElementById("detail");
  const facts = h("dl", {});
  const about = h("p", { class: "description" });
  const use = (text) => () => {
    dialog.close();
    refer(item, text);
  };
  dialog.replaceChildren(
    h("button", { type: "button", class: "round close", "aria-label": "Close", onclick: () => dialog.close() }, "✕"),
    h("div", { class: "large" }, thumbnail(item, 768, item.title || "untitled")),
    h("div", { class: "side" },
      h("h2", {}, h("span", { class: "number" }, `#${item.k}`), " ", item.title || "untitled"),
      about, facts,
      h("div", { class: "actions" },
        h("button", { type: "button", onclick: use(`more like #${item.k}`) }, "More like this"),
        h("button", { type: "button", onclick: use(`what is #${item.k}?`) }, "What is it?"))));
  dialog.onclick = (event) => event.target === dialog && dialog.close();
  dialog.showModal();
  try {
    const row = await getJson(itemPath(item.id));
    about.textContent = row.description ?? "";
    for (const [name, value] of Object.entries(row.attributes ?? {})) {
      const words = Array.isArray(value) ? value.join(", ") : typeof value === "object" ? JSON.stringify(value) : String(value);
      if (words && words !== "null") facts.append(h("dt", {}, name.replaceAll("_", " ")), h("dd", {}, words));
    }
    const guessed = Map.groupBy(row.guesses ?? [], (guess) => guess.name);
    for (const [name, some] of guessed)
      facts.append(h("dt", {}, `${name.replaceAll("_", " ")}?`), h("dd", { class: "guessed" }, some.map(({ value, confidence }) => `${value} ${Math.round(100 * confidence)}%`).join(", ")));
  } catch (error) {
    about.textContent = error.message;
  }
}
