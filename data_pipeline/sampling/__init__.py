"""Turns a recipe into batches, as a pure function of the config.

recipe     stages of a recipe, and the plan of steps and samples that follows from them (stage,
           stage_sources)
order      the tokens that sample i of a stage holds (mixture, feistel, locations)
dealing    the samples of a step that a rank takes
batches    samples as tensors, with documents rearranged for fill in the middle (fim,
           fim_transform)
padding    equal shapes for the micro-batches of all ranks and steps
"""
