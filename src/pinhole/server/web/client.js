// A plain OpenAI-style client: posts the messages, reads server-sent events. Knows nothing of the page.

export class ChatError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const WORDS = {
  413: "That was too much to send at once. Send fewer or smaller pictures, or start a new chat.",
  503: "The assistant is busy right now. Try again in a moment.",
};

export async function getJson(path) {
  const response = await fetch(path);
  if (!response.ok) throw await failure(response);
  return response.json();
}

// Calls on.text(string), on.event(pinhole event) as they come; resolves to the whole text.
export async function chat(model, messages, on, signal) {
  let response;
  try {
    response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ model, messages, stream: true }),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ChatError("The server cannot be reached. Is `pinhole serve` still running?");
  }
  if (!response.ok) throw await failure(response);
  let text = "";
  let ended = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      ended = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ChatError(chunk.error.message);
    const delta = chunk.choices?.[0]?.delta ?? {};
    if (delta.content) {
      text += delta.content;
      on.text(delta.content);
    }
    if (delta.pinhole) on.event(delta.pinhole);
  }
  if (!ended) throw new ChatError("The connection was lost before the answer was complete.");
  return text;
}

async function failure(response) {
  let said = "";
  try {
    said = (await response.json()).error.message;
  } catch {
    said = `The server answered ${response.status}.`;
  }
  return new ChatError(WORDS[response.status] ?? said, response.status);
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const parts = rest.split("\n\n");
      rest = parts.pop();
      for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ChatError("The connection was lost before the answer was complete.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
