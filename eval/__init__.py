"""Evaluation: validation during training, lm-eval tasks, generation and chat, and the HTML report.

`find_model`, `devices` and `load_model` find and load exported models. The subpackages are:

    inloop/   loss and lm-eval tasks on the model while it trains
    tasks/    lm-eval tasks: built from a corpus, or chosen by name
    scores/   scores of exported models: lm-eval, perplexity, comparison, published tables
    chat/     text generation, chat in the terminal, an OpenAI-compatible server
    report/   the HTML report of a run and the model card
"""
