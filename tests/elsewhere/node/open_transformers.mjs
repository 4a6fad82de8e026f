// transformers.js opens a bundle and goes on with texts, by onnxruntime-node.
import { env, pipeline, TextStreamer } from '@huggingface/transformers';
import { serve } from './serve.mjs';

env.allowRemoteModels = false;

// Tokens of greedy continuations; more than one prompt are one batch, padded on the left.
await serve(async ({ bundle, prompts, messages, n_new }) => {
  const generate = await pipeline('text-generation', bundle);
  const { model, tokenizer } = generate;
  const settings = { max_new_tokens: n_new, do_sample: false };
  let ids = [[]];
  if ((prompts?.length ?? 1) > 1) {
    tokenizer.padding_side = 'left';
    const inputs = tokenizer(prompts, { padding: true });
    const made = await model.generate({ ...inputs, ...settings });
    ids = made.slice(null, [inputs.input_ids.dims[1], null]).tolist();
  } else {
    const note = (tokens) => ids[0].push(...tokens);
    const streamer = new TextStreamer(tokenizer, {
      skip_prompt: true,
      token_callback_function: note,
      callback_function: () => {},
    });
    await generate(messages ?? prompts[0], { ...settings, streamer });
  }
  await generate.dispose();
  return ids.map((row) => row.map(Number));
});
