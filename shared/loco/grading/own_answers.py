"""Whose answers a base model should learn from: what the share it solves by itself says."""

from loco.contracts.figures import share

#: A base that solves less of its questions has too few right answers of its own.
TOO_FEW = 0.1
#: A base that solves more is made worse by answers that others wrote: docs/learning.md has 57 to 51 % for
#: one, and weak bases (2 and 24 %) that gain from them.
CAPABLE = 0.4


def advice(*, own: bool, solved: float, what: str) -> str | None:
    """What to train on instead; None where the share speaks for the source that there is.

    Args:
        own: whether the rows are the base's own answers (source self).
        solved: part of the questions that the base solves, 0 to 1.
        what: which questions, like `held_out`.
    """
    if own and solved < TOO_FEW:
        return (
            "Train on rows with answers (prepare.source of kind huggingface or jsonl; profile "
            f"`gold` of math). The base solves only {share(solved)} of {what} by itself, so it "
            "has too few right answers of its own."
        )
    if not own and solved > CAPABLE:
        return (
            "Train on the base's own verified answers to the same questions (prepare.source of "
            f"kind self; profile `default` of math). The base solves {share(solved)} of {what} "
            "by itself, and answers from others often make such a base worse."
        )
    return None
