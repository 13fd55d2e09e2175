// A client in TypeScript that knows the OpenAPI document and nothing else. Its types are checked by `make clients`;
// with SERVICE_URL set it also runs.
import createClient from "openapi-fetch";

import type { components, paths } from "./schema.js";

declare const process: { env: Record<string, string | undefined> };

type Event = components["schemas"]["Event"];
type Problem = components["schemas"]["Problem"];
type Run = components["schemas"]["Run"];

/** Narrows an event by its type; the document's last variant stands for types that are still to come. */
function isOf<T extends string>(event: Event, type: T): event is Extract<Event, { type: T }> {
  return event.type === type;
}

function must<T>(answer: { data?: T; error?: Problem; response: Response }): T {
  if (answer.data === undefined) {
    throw new Error(`${answer.response.status} ${answer.error?.code}: ${answer.error?.detail}`);
  }
  return answer.data;
}

function finalText(run: Run): string {
  switch (run.status) {
    case "completed":
    case "degraded":
    case "failed":
    case "cancelled":
    case "interrupted":
      if (run.result === null) throw new Error("a terminal run has a result");
      return run.result.final_text;
    case "queued":
    case "running":
    case "paused":
    case "waiting":
      throw new Error(`the run is ${run.status}`);
  }
}

/** The events of a stream of server-sent events. */
async function* eventsOf(stream: ReadableStream<Uint8Array>): AsyncGenerator<Event> {
  let text = "";
  for await (const chunk of stream.pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>)) {
    const parts = (text + chunk).split("\n\n");
    text = parts.pop() ?? "";
    for (const part of parts) {
      const data = part.split("\n").find((line) => line.startsWith("data: "));
      if (data !== undefined) yield JSON.parse(data.slice("data: ".length)) as Event;
    }
  }
}

async function main(baseUrl: string): Promise<void> {
  const client = createClient<paths>({ baseUrl });

  const saved = await client.PUT("/agents/{name}", {
    params: { path: { name: "typescript" } },
    body: { model: "demo/echo", instructions: "Echo.", limits: { max_steps: 2 } },
  });
  const version: number = must(saved).version;

  const run = must(
    await client.POST("/runs/wait", {
      params: { query: { timeout_s: 60 }, header: { "Idempotency-Key": crypto.randomUUID() } },
      body: { agent: `typescript@${version}`, input: "hello", metadata: { from: "typescript" } },
    }),
  );
  const said = finalText(run);

  const page = must(
    await client.GET("/runs/{run_id}/events/list", { params: { path: { run_id: run.run_id }, query: { limit: 100 } } }),
  );
  const ends = page.items.filter((event) => isOf(event, "run_completed")).map((event) => event.data.final_text);
  if (ends[0] !== said) throw new Error(`the last event says ${ends[0]}, the run ${said}`);

  const listed = must(await client.GET("/runs", { params: { query: { status: ["completed"], metadata: ["from:typescript"] } } }));
  if (!listed.items.some((item) => item.run_id === run.run_id)) throw new Error("the run is not listed");

  const messages = must(
    await client.GET("/threads/{thread_id}/messages", { params: { path: { thread_id: run.thread_id } } }),
  );
  if (messages.items.at(-1)?.role !== "assistant") throw new Error("the last message is the assistant's");

  const missing = await client.GET("/runs/{run_id}", { params: { path: { run_id: "none" } } });
  const code: components["schemas"]["ProblemCode"] | undefined = missing.error?.code;
  if (code !== "not_found") throw new Error(`expected not_found, got ${code}`);

  const { response } = await client.POST("/runs/stream", {
    body: { agent: "typescript", input: [{ role: "user", content: [{ type: "text", text: "streamed" }] }] },
    parseAs: "stream",
  });
  if (response.body === null) throw new Error("no stream");
  let text = "";
  for await (const event of eventsOf(response.body)) {
    if (isOf(event, "text_delta")) text += event.data.delta;
  }
  if (text !== "streamed") throw new Error(`the deltas say ${text}`);
}

const url = process.env["SERVICE_URL"];
if (url !== undefined) await main(url);
