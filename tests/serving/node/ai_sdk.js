// The Vercel AI SDK against a server: its default is the Responses API; and chat completions.
// node ai_sdk.js BASE_URL IMAGE_URI PDF_URI; prints one JSON object.
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, jsonSchema, Output, stepCountIs, streamText, tool } from "ai";

const [baseURL, image, pdf] = process.argv.slice(2);
const provider = createOpenAI({ baseURL, apiKey: "none" });
const question = "What colour is the circle?";
const bytes = (uri) => Buffer.from(uri.split(",")[1], "base64");
const messages = [
  {
    role: "user",
    content: [
      { type: "image", image: bytes(image) },
      { type: "text", text: question },
    ],
  },
];
const look = tool({
  description: "Look at a shape.",
  inputSchema: jsonSchema({ type: "object", properties: { shape: { type: "string" } }, required: ["shape"] }),
  execute: async () => "round",
});
const found = {};

for (const [name, model] of Object.entries({ responses: provider("demo"), chat: provider.chat("demo") })) {
  const settings = { model, temperature: 0, maxRetries: 0, messages };
  const whole = await generateText(settings);
  const streamed = streamText(settings);
  let text = "";
  for await (const piece of streamed.textStream) text += piece;
  const seen = await generateText({
    ...settings,
    output: Output.object({
      schema: jsonSchema({
        type: "object",
        properties: { colour: { type: "string", enum: ["red", "blue"] } },
        required: ["colour"],
        additionalProperties: false,
      }),
    }),
  });
  const called = await generateText({
    ...settings,
    tools: { look },
    toolChoice: "required",
    stopWhen: stepCountIs(1),
  });
  const file = { type: "file", data: bytes(pdf), mediaType: "application/pdf", filename: "two.pdf" };
  const read = await generateText({
    ...settings,
    messages: [{ role: "user", content: [file, { type: "text", text: question }] }],
  });
  found[name] = {
    whole: whole.text,
    usage: whole.usage.outputTokens,
    streamed: text,
    seen: seen.output,
    call: called.toolCalls[0].toolName,
    result: called.toolResults[0].output,
    fileTokens: read.usage.inputTokens,
  };
}
console.log(JSON.stringify(found));
