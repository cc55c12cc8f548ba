// OpenAI's client for Node against a server: both notations, whole and streamed, tools, errors.
// node openai_node.js BASE_URL IMAGE_URI PDF_URI; prints one JSON object.
import OpenAI from "openai";

const [baseURL, image, pdf] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const question = "What colour is the circle?";
const settings = { model: "demo", temperature: 0 };
const tool = { name: "look", parameters: { type: "object", properties: { shape: { type: "string" } } } };
const found = {};

const messages = [
  {
    role: "user",
    content: [
      { type: "image_url", image_url: { url: image } },
      { type: "text", text: question },
    ],
  },
];
const input = [
  {
    role: "user",
    content: [
      { type: "input_image", image_url: image, detail: "auto" },
      { type: "input_text", text: question },
    ],
  },
];

const chat = await client.chat.completions.create({ ...settings, messages });
found.chat = chat.choices[0].message.content;

found.chatStream = "";
const chunks = await client.chat.completions.create({ ...settings, messages, stream: true });
for await (const chunk of chunks) found.chatStream += chunk.choices[0]?.delta?.content ?? "";

const called = await client.chat.completions.create({
  ...settings,
  messages,
  tools: [{ type: "function", function: tool }],
  tool_choice: { type: "function", function: { name: "look" } },
});
found.chatCall = called.choices[0].message.tool_calls[0].function.name;

const response = await client.responses.create({ ...settings, input });
found.response = response.output_text;

found.responseStream = "";
const stream = client.responses.stream({ ...settings, input });
for await (const event of stream) {
  if (event.type === "response.output_text.delta") found.responseStream += event.delta;
}
found.responseFinal = (await stream.finalResponse()).output_text;

const forced = await client.responses.create({
  ...settings,
  input,
  tools: [{ type: "function", strict: true, ...tool }],
  tool_choice: "required",
});
const call = forced.output.find((item) => item.type === "function_call");
found.responseCall = call.name;
const after = await client.responses.create({
  ...settings,
  input: [...input, ...forced.output, { type: "function_call_output", call_id: call.call_id, output: "round" }],
});
found.afterCall = after.status;

const file = { type: "input_file", filename: "two.pdf", file_data: pdf };
const read = await client.responses.create({
  ...settings,
  input: [{ role: "user", content: [file, { type: "input_text", text: question }] }],
});
found.fileTokens = read.usage.input_tokens;

const models = await client.models.list();
found.models = models.data.map((model) => model.id);

try {
  await client.responses.create({ ...settings, input, previous_response_id: "resp_1" });
} catch (error) {
  found.refused = [error.status, error.param];
}
console.log(JSON.stringify(found));
