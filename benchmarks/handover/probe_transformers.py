"""Reads the cases from standard input with the transformers of this environment, prints findings.

It runs in environments that do not have Headwater.
"""

import json
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

SPECIAL, NEW_TOKENS = 3, 24


def findings(case: dict) -> dict:
    """Returns what this version computes for a case."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            case["folder"], dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
    except (KeyError, ValueError) as error:
        return {"error": f"no class for it ({str(error).splitlines()[0]:.60}...)"}
    tokenizer = AutoTokenizer.from_pretrained(case["folder"])
    ids = torch.tensor([case["prompt"]])
    with torch.no_grad():
        scores = torch.log_softmax(model(ids).logits[0].double(), -1)[:-1]
        forbidden = [[number] for number in range(SPECIAL)]
        greedy = [
            model.generate(
                torch.tensor([start]), attention_mask=torch.ones(1, len(start), dtype=torch.long),
                do_sample=False, max_new_tokens=NEW_TOKENS, bad_words_ids=forbidden,
            )[0, len(start) :].tolist()
            for start in case["starts"]
        ]  # fmt: skip
    return {
        "tokens": [tokenizer(line).input_ids for line in case["lines"]],
        "log_probabilities": scores.gather(-1, ids[0, 1:, None])[:, 0].tolist(),
        "greedy": greedy,
        "rendered": tokenizer.apply_chat_template(
            case["chat"], tokenize=False, add_generation_prompt=True
        ),
    }


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    found = {case["family"]: findings(case) for case in json.load(sys.stdin)}
    print(json.dumps({"version": transformers.__version__, "families": found}))
