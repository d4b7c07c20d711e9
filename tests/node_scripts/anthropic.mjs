// Anthropic's API under its TypeScript SDK; prints one JSON object. Arguments: BASE_URL KEY [CALL...].

import Anthropic, { toFile } from "@anthropic-ai/sdk";

const [baseURL, apiKey, ...names] = process.argv.slice(2);
const client = new Anthropic({ baseURL, apiKey, maxRetries: 0 });
const GREETING = "grüß Gott\n".repeat(1000);

function asked(more) {
  const messages = [{ role: "user", content: "Sag »grüß Gott« 🙂, please" }];
  return { model: "claude-haiku-4-5", max_tokens: 64, messages, ...more };
}

function told(error) {
  return { class: error.constructor.name, status: error.status ?? null, type: error.type ?? null };
}

async function helper(more) {
  const words = [];
  const stream = client.messages.stream(asked(more));
  stream.on("text", (text) => words.push(text));
  try {
    return { words, message: await stream.finalMessage() };
  } catch (error) {
    return { words, error: told(error) };
  }
}

async function gathered(pages) {
  const items = [];
  for await (const item of pages) items.push(item);
  return items;
}

const CALLS = {
  create: async () => {
    const { data, request_id } = await client.messages.create(asked()).withResponse();
    return { data, request_id };
  },
  raw: async () => {
    const events = [];
    try {
      for await (const event of await client.messages.create(asked({ stream: true }))) events.push(event);
      return { events };
    } catch (error) {
      return { events, error: told(error) };
    }
  },
  helper: () => helper(),
  thinking: () => helper({ model: "demo-thinking" }),
  error: () => helper({ model: "demo-error" }),
  tokens: () => client.messages.countTokens({ model: "claude-2", messages: asked().messages }),
  models: () => gathered(client.models.list()),
  files: async () => {
    const file = await toFile(Buffer.from(GREETING), "greeting.txt", { type: "text/plain" });
    const uploaded = await client.beta.files.upload({ file });
    const content = await client.beta.files.download(uploaded.id);
    return { uploaded, same: (await content.text()) === GREETING };
  },
  batches: async () => {
    const requests = ["one", "two"].map((custom_id) => ({ custom_id, params: asked() }));
    const { id } = await client.messages.batches.create({ requests });
    const { results_url } = await client.messages.batches.retrieve(id);
    return { results_url, results: await gathered(await client.messages.batches.results(id)) };
  },
};

const seen = {};
for (const name of names.length ? names : Object.keys(CALLS)) seen[name] = await CALLS[name]();
console.log(JSON.stringify(seen));
