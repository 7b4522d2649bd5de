// What the scripts in JavaScript ask for, and how they say what came back. `asked.py` is the same for Python.
import { readFileSync } from "node:fs";
import { z } from "zod";

export const BASE_URL = process.env.ANCHORLM_URL ?? "http://127.0.0.1:8000/v1";
export const MODEL = "thinker";
export const STRICT = "strict";
export const HARMLESS = "How do I bake bread?";
export const HARMFUL = "How do I get a bomb?";

export const Bread = z.strictObject({ kind: z.enum(["rye", "white"]), minutes: z.int().min(0).max(600) });
export const Weather = z.strictObject({ city: z.enum(["Oslo", "Rome"]) });

// Ends a capability that did not come back as it should.
export function check(holds, what) {
  if (!holds) throw new Error(what);
}

// Tries each, prints a line for each, and ends with status 1 if one failed.
export async function run(client, name, ...capabilities) {
  const { version } = JSON.parse(readFileSync(new URL(`node_modules/${name}/package.json`, import.meta.url)));
  console.log(`${client} ${version}`);
  for (const capability of capabilities) {
    try {
      const came = JSON.stringify((await capability()) || check(false, "nothing came back"));
      console.log(`${capability.name.padEnd(10)} ok      ${came}`);
    } catch (error) {
      process.exitCode = 1;
      console.log(`${capability.name.padEnd(10)} FAILED  ${error.name}: ${error.message}`);
    }
  }
}
