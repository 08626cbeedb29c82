"""Prints, as JSON, what vLLM computes for a model: answers, and log-probabilities of texts.

It runs in an environment that does not have Headwater, and reads from standard input `folder`,
`prompts` (ids), `tokens` (of an answer) and `sequences` (ids).
"""

import json
import os
import sys

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_HOST_IP": "127.0.0.1",
    "HF_HUB_OFFLINE": "1",
}


def findings(asked: dict) -> dict:
    """Returns the ids of each answer, and the log-probability of each id but the first."""
    import vllm

    length = max(map(len, [*asked["prompts"], *asked["sequences"]])) + asked["tokens"]
    llm = vllm.LLM(asked["folder"], dtype="float32", enforce_eager=True, max_model_len=length)
    greedy = vllm.SamplingParams(max_tokens=asked["tokens"], temperature=0, detokenize=False)
    score = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0)

    def run(ids: list[int], how: vllm.SamplingParams) -> vllm.RequestOutput:
        return llm.generate({"prompt_token_ids": ids}, how, use_tqdm=False)[0]

    scored = [run(ids, score).prompt_logprobs[1:] for ids in asked["sequences"]]
    return {
        "version": vllm.__version__,
        "answers": [list(run(ids, greedy).outputs[0].token_ids) for ids in asked["prompts"]],
        "log_probabilities": [
            [entry[token].logprob for entry, token in zip(entries, ids[1:], strict=True)]
            for entries, ids in zip(scored, asked["sequences"], strict=True)
        ],
    }


if __name__ == "__main__":
    os.environ.update(SETTINGS)
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints goes to standard error
    print(json.dumps(findings(json.load(sys.stdin))), file=output, flush=True)
