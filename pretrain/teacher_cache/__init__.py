"""The cache of a teacher's answers to the samples of a run, made by `python -m pretrain teach`.

The order of samples is a pure function of the recipe, the corpus and the seed, so the answers to
sample i of a stage are stored under this number, and a run in any layout finds them there.

    records      the stored form of the answers to one sample
    manifest     the description of a cache: teacher, order, files
    units        the parts in which a cache is made
    command      `python -m pretrain teach`
    coverage     the steps of a run whose contexts a cache has
    reader       verified reading by sample number
    teacher      the teacher that an objective asks
"""
