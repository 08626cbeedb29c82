"""Reads the cases from standard input with the vLLM of this environment, prints findings.

It runs in environments that do not have Headwater.
"""

import gc
import json
import os
import sys

SPECIAL, NEW_TOKENS = 3, 24
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_HOST_IP": "127.0.0.1",
    "HF_HUB_OFFLINE": "1",
}


def findings(case: dict) -> dict:
    """Returns what vLLM computes for a case."""
    from vllm import LLM, SamplingParams

    try:
        llm = LLM(case["folder"], dtype="float32", enforce_eager=True, max_model_len=512)
    except Exception as error:  # of many types: what is not supported is found in many places
        return {"error": " ".join(str(error).split())[:120]}
    tokenizer = llm.get_tokenizer()
    score = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0)
    write = SamplingParams(
        max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True, detokenize=False,
        logit_bias=dict.fromkeys(range(SPECIAL), -100.0),
    )  # fmt: skip
    scored = llm.generate({"prompt_token_ids": case["prompt"]}, score, use_tqdm=False)[0]
    written = [
        llm.generate({"prompt_token_ids": start}, write, use_tqdm=False)[0].outputs[0].token_ids
        for start in case["starts"]
    ]
    chat = llm.chat(case["chat"], score, use_tqdm=False)[0].prompt_token_ids
    found = {
        "tokens": [tokenizer(line).input_ids for line in case["lines"]],
        "log_probabilities": [
            entry[token].logprob
            for entry, token in zip(scored.prompt_logprobs[1:], case["prompt"][1:], strict=True)
        ],
        "greedy": [list(ids) for ids in written],
        "rendered": tokenizer.decode(chat),
    }
    del llm
    gc.collect()
    return found


if __name__ == "__main__":
    os.environ.update(SETTINGS)
    import vllm

    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints goes to standard error
    result = {case["family"]: findings(case) for case in json.load(sys.stdin)}
    print(json.dumps({"version": vllm.__version__, "families": result}), file=output, flush=True)
