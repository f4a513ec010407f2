"""How large the fields of a spec may be: far above every use, below what costs a server its memory.

docs/security.md has the table.
"""

#: Tokens of a context or a row.
LARGEST_CONTEXT = 1_048_576
#: Tokens of an answer.
LONGEST_ANSWER = 131_072
#: Factors of the rows of an optimizer step.
MOST_ROWS_A_STEP = 4096
#: Characters of a name, an ID, a split or a revision.
LONGEST_NAME = 200
#: Characters of a path; every file system here takes 255 a name.
LONGEST_PATH = 1024
#: Characters of a system prompt or an instruction.
LONGEST_PROMPT = 16_384
#: Bytes of the files of a hub's data set.
LARGEST_FETCH = 16 * 2**30
