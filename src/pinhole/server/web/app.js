// The page: keeps the conversation's messages itself, as any OpenAI client would, and wires the parts together.

import { chat, getJson } from "./client.js";
import { isPicture, listen, shrink } from "./attach.js";
import { h, plural, quoted, thumbnail } from "./dom.js";
import { AnswerView, userTurn } from "./view.js";

const $ = (id) => document.getElementById(id);
const MOST_PICTURES = 4;
let about = { model: "pinhole", tokens_per_item: 1 };
let messages = [];
let known = new Map();
let attached = [];
let running = null;

// -- the start -----------------------------------------------------------------------------------------

async function begin() {
  try {
    about = await getJson("v1/pinhole/about");
  } catch (error) {
    $("pitch").textContent = error.message;
    return;
  }
  const each = plural(about.tokens_per_item, "token");
  $("facts").textContent = `${plural(about.items, "picture")} · ${each} each`;
  $("facts").title = [about.engine, about.embedding && `embedding ${about.embedding}`].filter(Boolean).join(" · ");
  $("pitch").replaceChildren(`This model has no vision encoder. It sees each of `, h("b", {}, plural(about.items, "picture")), ` as ${about.tokens_per_item === 1 ? "a single token" : each}.`);
  $("kinds").replaceChildren(...about.categories.slice(0, 12).map((kind) => {
    const name = kind.name.replaceAll("_", " ");
    return h("button", { type: "button", class: "kind", onclick: () => send(`Show me everything in ${name}`) },
      h("span", { class: "faces" }, kind.items.map((id) => thumbnail({ id }, 128))), h("span", { class: "label" }, h("span", {}, name), h("small", {}, kind.count.toLocaleString("en"))));
  }));
  $("examples").replaceChildren(...about.examples.map((text) => h("button", { type: "button", class: "example", onclick: () => send(text) }, text)));
}

// -- a turn --------------------------------------------------------------------------------------------

async function send(text, urls = []) {
  text = text.trim();
  if (running || (!text && !urls.length)) return;
  document.querySelectorAll(".error button").forEach((button) => button.remove()); // what failed is out of the conversation
  const parts = [...(text ? [{ type: "text", text }] : []), ...urls.map((url) => ({ type: "image_url", image_url: { url } }))];
  const pictures = urls.map(numbered);
  $("log").append(userTurn(text, pictures, known, refer));
  await answer({ role: "user", content: urls.length ? parts : text }, pictures);
}

// A sent picture has the next number, as the server will count when it reads the messages.
function numbered(url) {
  const k = Math.max(0, ...known.keys()) + 1;
  const item = { k, id: "", title: "your picture", sent: url };
  known.set(k, item);
  return item;
}

async function answer(question, pictures) {
  const [conversation, items, controller] = [messages, known, new AbortController()]; // a new chat must not inherit this turn
  const view = new AnswerView(refer, about.tokens_per_item, items);
  $("log").append(view.element);
  begun(true);
  busy(controller);
  follow(true);
  const on = {
    text: (delta) => keepInView(() => view.add(delta)),
    event: (event) => keepInView(() => view.event(event)),
  };
  const forget = () => [...pictures.map((item) => item.k), ...view.fresh].forEach((k) => items.delete(k)); // their numbers are free again
  try {
    const text = await chat(about.model, [...conversation, question], on, controller.signal);
    conversation.push(question, { role: "assistant", content: text });
    view.end();
  } catch (error) {
    const said = error.name === "AbortError" ? stopped(view) : "";
    if (said) conversation.push(question, { role: "assistant", content: said });
    else forget();
    if (error.name === "AbortError") view.end("Stopped.");
    else
      view.fail(error.message, () => {
        view.element.remove();
        for (const item of pictures) items.set(item.k, item);
        answer(question, pictures);
      });
  } finally {
    if (running === controller) busy(null);
    follow(false);
  }
}

// A stopped answer still has to carry the pictures that were shown, so that the next turn can refer to them.
function stopped(view) {
  const said = view.said.replace(/\[(#[^\]\n]*(\](\([^)\n]*)?)?)?$/, "");
  const missing = [...view.items.values()].filter((item) => !said.includes(`](item:${quoted(item.id)})`));
  const links = missing.map((item) => `[#${item.k}](item:${quoted(item.id)})`).join(" · ");
  return links ? `${said}\n\nShown: ${links}` : said;
}

function begun(yes) {
  $("welcome").hidden = yes;
  $("new").hidden = !yes;
  document.body.classList.toggle("chatting", yes);
}

function busy(controller) {
  running = controller;
  $("send").hidden = Boolean(controller);
  $("stop").hidden = !controller;
  if (!controller && matchMedia("(hover: hover)").matches) $("text").focus();
}

// -- scrolling -----------------------------------------------------------------------------------------

const atEnd = () => $("main").scrollHeight - $("main").scrollTop - $("main").clientHeight < 120;

function keepInView(change) {
  const stay = atEnd();
  change();
  if (stay) follow(true);
}

function follow(always) {
  if (always || atEnd()) $("main").scrollTop = $("main").scrollHeight;
}

// -- the composer --------------------------------------------------------------------------------------

function refer(item, text = "") {
  const field = $("text");
  const tag = `#${item.k}`;
  if (text) field.value = text;
  else if (!field.value.trim()) field.value = `more like ${tag}`;
  else if (!new RegExp(`${tag}(?!\\d)`).test(field.value)) field.value = `${field.value.trimEnd()} ${tag}`;
  grow();
  hints(item);
  field.focus();
  field.setSelectionRange(field.value.length, field.value.length);
}

function hints(item) {
  const tag = `#${item.k}`;
  const ideas = [`more like ${tag}`, `what is ${tag}?`, `what goes with ${tag}?`, `like ${tag} but blue`];
  const use = (idea) => () => {
    $("text").value = idea;
    grow();
    $("text").focus();
  };
  $("hints").replaceChildren(h("span", { class: "about" }, thumbnail(item, 64), tag), ...ideas.map((idea) => h("button", { type: "button", onclick: use(idea) }, idea)));
  $("hints").hidden = false;
}

function grow() {
  const field = $("text");
  field.rows = 1;
  while (field.scrollHeight > field.clientHeight + 2 && field.rows < 8) field.rows += 1;
}

function showAttached() {
  $("attached").hidden = !attached.length;
  $("attached").replaceChildren(...attached.map((url, i) =>
    h("span", { class: "thumb" }, h("img", { src: url, alt: "picture to send" }), h("button", { type: "button", "aria-label": "Remove this picture", onclick: () => {
      attached.splice(i, 1);
      showAttached();
    } }, "✕"))));
}

async function add(files) {
  const pictures = files.filter(isPicture);
  if (pictures.length < files.length) tell("Only pictures can be added: PNG, JPEG, WebP or GIF.");
  for (const file of pictures) {
    if (attached.length >= MOST_PICTURES) {
      tell(`At most ${MOST_PICTURES} pictures at once.`);
      break;
    }
    try {
      attached.push(await shrink(file));
    } catch {
      tell(`${file.name || "That file"} cannot be read as a picture.`);
    }
  }
  showAttached();
  $("text").focus();
}

function tell(words) {
  $("hints").replaceChildren(h("span", { class: "warning", role: "alert" }, words));
  $("hints").hidden = false;
}

function submit() {
  if (running) return;
  const text = $("text").value;
  const pictures = attached;
  if (!text.trim() && !pictures.length) return;
  attached = [];
  $("text").value = "";
  $("hints").hidden = true;
  showAttached();
  grow();
  send(text, pictures);
}

function restart() {
  running?.abort();
  messages = [];
  known = new Map();
  $("log").replaceChildren();
  $("hints").hidden = true;
  begun(false);
  busy(null);
  $("text").focus();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  }
  if (event.key === "Escape" && running) running.abort();
});
$("text").addEventListener("input", grow);
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", restart);
$("attach").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  add([...$("file").files]);
  $("file").value = "";
});
listen($("drop"), add);
begin();
