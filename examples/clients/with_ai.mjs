// Vercel's AI SDK. Needs `npm install ai @ai-sdk/openai-compatible zod`.
//
// anchorlm serve examples/clients/thinker.toml examples/clients/strict.toml
// node examples/clients/with_ai.mjs
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { NoObjectGeneratedError, Output, generateText, stepCountIs, streamText, tool } from "ai";
import { BASE_URL, Bread, HARMFUL, HARMLESS, MODEL, STRICT, Weather, check, run } from "./asked.mjs";

// Without `supportsStructuredOutputs` the SDK asks for any JSON, and drops the schema.
const server = createOpenAICompatible({ name: "anchorlm", baseURL: BASE_URL, supportsStructuredOutputs: true });
const asked = { model: server(MODEL), prompt: HARMLESS };

async function chat() {
  const { text, finishReason } = await generateText(asked);
  check(finishReason === "stop", "the answer did not end");
  return text;
}

async function stream() {
  let text = "";
  for await (const piece of streamText(asked).textStream) text += piece;
  check(text === (await chat()), `the stream says ${text}`);
  return text;
}

// The SDK calls the tool, and sends its result back.
async function tools() {
  const weather = tool({ inputSchema: Weather, execute: ({ city }) => `It rains in ${city}.` });
  const first = { toolChoice: { type: "tool", toolName: "weather" } };
  const { steps, text } = await generateText({
    ...asked,
    tools: { weather },
    stopWhen: stepCountIs(2),
    prepareStep: ({ stepNumber }) => (stepNumber === 0 ? first : {}),
  });
  const [result] = steps[0].toolResults;
  check(text, "no answer to the result");
  return `${result.toolName}(${result.input.city})`;
}

async function schema() {
  const { output } = await generateText({ ...asked, output: Output.object({ schema: Bread }) });
  return output;
}

// The thought stands apart.
async function reasoning() {
  const whole = await generateText(asked);
  const streamed = await streamText(asked).finalStep.then((step) => step.reasoningText);
  check(streamed && streamed === whole.reasoningText, `the streamed thought is ${streamed}`);
  check(!whole.text.includes(streamed), "the thought stands in the answer");
  return streamed;
}

// In place of an object. The SDK throws an error that has the refusal as its text.
async function refusal() {
  const said = await generateText({ model: server(STRICT), prompt: HARMFUL });
  check(/sorry/i.test(said.text) && !/sorry.*sorry/i.test(said.text), `the refusal is ${said.text}`);
  const harmful = { model: server(STRICT), prompt: HARMFUL, output: Output.object({ schema: Bread }) };
  try {
    const { output } = await generateText(harmful);
    throw new Error(`an object of a refusal: ${JSON.stringify(output)}`);
  } catch (error) {
    if (!NoObjectGeneratedError.isInstance(error)) throw error;
    check(error.finishReason === "content-filter", `it ended with ${error.finishReason}`);
    return error.text;
  }
}

await run("Vercel's AI SDK", "ai", chat, stream, tools, schema, reasoning, refusal);
