// The `openai` package of npm. Needs `npm install openai zod`.
//
// anchorlm serve examples/clients/thinker.toml examples/clients/strict.toml
// node examples/clients/with_openai.mjs
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { BASE_URL, Bread, HARMFUL, HARMLESS, MODEL, STRICT, Weather, check, run } from "./asked.mjs";

const client = new OpenAI({ baseURL: BASE_URL, apiKey: "none" });
const asked = [{ role: "user", content: HARMLESS }];
const say = (more = {}) => client.chat.completions.create({ model: MODEL, messages: asked, ...more });

async function chat() {
  const [choice] = (await say()).choices;
  check(choice.finish_reason === "stop", "the answer did not end");
  return choice.message.content;
}

async function stream() {
  let text = "";
  for await (const chunk of await say({ stream: true })) text += chunk.choices[0]?.delta.content ?? "";
  check(text === (await chat()), `the stream says ${text}`);
  return text;
}

// A call, its result, and the answer to that.
async function tools() {
  const tool = { type: "function", function: { name: "weather", parameters: z.toJSONSchema(Weather) } };
  const choice = { type: "function", function: { name: "weather" } };
  const { message } = (await say({ tools: [tool], tool_choice: choice })).choices[0];
  const [call] = message.tool_calls;
  const { city } = Weather.parse(JSON.parse(call.function.arguments));
  const result = { role: "tool", tool_call_id: call.id, content: `It rains in ${city}.` };
  const answer = await say({ tools: [tool], messages: [...asked, message, result] });
  check(answer.choices[0].message.content, "no answer to the result");
  return `${call.function.name}(${city})`;
}

async function schema() {
  const format = zodResponseFormat(Bread, "bread");
  const answer = await client.chat.completions.parse({ model: MODEL, messages: asked, response_format: format });
  return Bread.parse(answer.choices[0].message.parsed);
}

// The thought stands apart. The package keeps fields that it does not know.
async function reasoning() {
  const { message } = (await say()).choices[0];
  let streamed = "";
  for await (const chunk of await say({ stream: true })) streamed += chunk.choices[0]?.delta.reasoning_content ?? "";
  check(streamed && streamed === message.reasoning_content, "the streamed thought is another one");
  check(!message.content.includes(streamed), "the thought stands in the answer");
  return streamed;
}

// In place of an object.
async function refusal() {
  const turns = [{ role: "user", content: HARMFUL }];
  const format = zodResponseFormat(Bread, "bread");
  const answer = await client.chat.completions.parse({ model: STRICT, messages: turns, response_format: format });
  const { message } = answer.choices[0];
  check(message.parsed === null && message.content === null && message.refusal, "an object of a refusal");
  return message.refusal;
}

await run("openai for JavaScript", "openai", chat, stream, tools, schema, reasoning, refusal);
