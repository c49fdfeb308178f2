// Elements from words. Text only ever becomes a text node: nothing that a title or a model says is read as markup.

export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

// Percent-encoded as in links of answers: the characters that end a link too.
export const quoted = (id) => encodeURIComponent(id).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
export const itemPath = (id) => `items/${quoted(id)}`;

// The picture of an item of the catalogue, or of a picture that the user sent (it has an address of its own).
export function thumbnail(item, size, alt = "") {
  const src = item.sent ?? `${itemPath(item.id)}/image?size=${size}`;
  const image = h("img", { alt, loading: "lazy", decoding: "async", draggable: false, src });
  image.addEventListener("error", () => image.replaceWith(h("span", { class: "nopicture", "aria-label": "no picture" }, "no picture")), { once: true });
  return image;
}

export const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
export const seconds = (s) => (s < 0.095 ? `${Math.max(1, Math.round(s * 1000))} ms` : s < 10 ? `${s.toFixed(1)} s` : `${Math.round(s)} s`);
