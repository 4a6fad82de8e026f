// The other side of `environments.ask`, for Node.
import { readFileSync } from 'node:fs';

export async function serve(answer) {
  const answers = [];
  for (const request of JSON.parse(readFileSync(0, 'utf-8'))) {
    try {
      answers.push(await answer(request));
    } catch (error) {
      answers.push(`${error.name}: ${error.message}`);
    }
  }
  console.log('\nanswers: ' + JSON.stringify(answers));
}
