// onnxruntime-web, the browser's engine, reads a prompt with a bundle's graph, by WebAssembly.
import { readFileSync } from 'node:fs';
import * as ort from 'onnxruntime-web';
import { serve } from './serve.mjs';

ort.env.wasm.numThreads = 1;

function int64(values) {
  return new ort.Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]);
}

// The logits after the last token.
await serve(async ({ bundle, ids, past_shape }) => {
  const session = await ort.InferenceSession.create(readFileSync(`${bundle}/onnx/model.onnx`), {
    executionProviders: ['wasm'],
    externalData: [{ path: 'model.onnx_data', data: readFileSync(`${bundle}/onnx/model.onnx_data`) }],
  });
  const known = {
    input_ids: () => int64(ids),
    attention_mask: () => int64(ids.map(() => 1)),
    position_ids: () => int64(ids.map((_, place) => place)),
  };
  const past = () => new ort.Tensor('float32', new Float32Array(0), past_shape);
  const inputs = session.inputNames.map((name) => [name, (known[name] ?? past)()]);
  const { logits } = await session.run(Object.fromEntries(inputs));
  const all = await logits.getData();
  return Array.from(all.slice(-logits.dims[2]));
});
