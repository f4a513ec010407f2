"""The guard set: every item accepts a right answer and refuses a wrong one."""

from collections import Counter
from pathlib import Path

import pytest

from loco.grading.eval_items import load_eval_items
from loco.grading.graders import grade

ITEMS = {
    item.id: item
    for item in load_eval_items(Path(__file__).parents[2] / "adapters/math/guard_general.jsonl")
}
#: ID to a right and a wrong answer.
ANSWERS = {
    "fact-1": ("The capital of France is Paris.", "It is Lyon."),
    "fact-2": ("Mars is known as the Red Planet.", "That is Venus."),
    "fact-3": ("William Shakespeare wrote it.", "Charles Dickens"),
    "fact-4": ("The Pacific Ocean.", "The Atlantic Ocean."),
    "fact-5": ("They take in CO₂.", "Oxygen."),
    "fact-6": ("Its symbol is **Au**.", "Ag"),
    "fact-7": ("Kenya is in East Africa.", "Asia"),
    "fact-8": ("Most Brazilians speak Portuguese.", "Spanish"),
    "fact-9": ("The heart.", "The liver."),
    "fact-10": ("Bees collect nectar.", "They collect leaves."),
    "language-1": ('The opposite of "hot" is "cold".', "warm"),
    "language-2": ("Children", "childs"),
    "language-3": ('The past tense of "go" is "went".', "goed"),
    "language-4": ("Joyful.", "tired"),
    "language-5": ('The correct spelling is "receive".', "receeve"),
    "language-6": ('The verb is "barks".', "dog"),
    "language-7": ("She is taller than her brother.", "She is taller then her brother."),
    "language-8": ("Are you ready?", "You are ready?"),
    "translation-1": ('"Gato" means "cat".', "dog"),
    "translation-2": ("L'eau", "agua"),
    "translation-3": ("dog", "hand"),
    "translation-4": ('It means "thank you".', "please"),
    "translation-5": ("Casa.", "maison"),
    "translation-6": ('"Rouge" means red.', "It is a shade of blue."),
    "reading-1": ("He left it on the bus.", "At home."),
    "reading-2": ("Her grandmother.", "Maria"),
    "reading-3": ("It is closed on Sundays.", "On Saturdays."),
    "reading-4": ("Their cousin Max.", "Lea has it."),
    "reading-5": ("C) The old building was too small.", "A"),
    "reading-6": ("No, it was still hot.", "Yes."),
    "reading-7": ("On Thursday.", "On Tuesday."),
    "reading-8": ("She went to the cinema.", "She went swimming in the pool."),
    "instruction-1": ("YELLOW", "Yellow"),
    "instruction-2": ("HELLO", "Here it is: HELLO"),
    "instruction-3": ("Ready.", "I am ready to help you!"),
    "instruction-4": ("The moon shone on the river.", "The moon was bright."),
    "instruction-5": ("Indeed, it is.", "Yes, indeed."),
    "instruction-6": ("Yes", "Yes, ice is cold because it is frozen."),
    "instruction-7": ("Banana, pear and mango.", "Banana, apple, pear"),
    "instruction-8": ("A fox ran. It slept. The end.", "A fox ran. It slept."),
    "format-1": ("- cat\n- dog\n- cow", "cat, dog, cow"),
    "format-2": ("red, green, blue", "The words are red, green, blue"),
    "format-3": ("[note]", "(note)"),
    "format-4": ("555-0142", "5550142"),
    "format-5": ("1. red\n2. blue", "red and blue"),
    "json-1": ('```json\n["Saturday", "Sunday"]\n```', "Saturday, Sunday"),
    "json-2": ('{"city": "Paris", "country": "France"}', '{"city": "Lyon", "country": "France"}'),
    "json-3": ('Here: {"name": "Mia", "age": 30}', '{"name": "Mia", "age": "30"}'),
    "json-4": ('{"title": "Emma", "author": "Jane Austen"}', '{"title": "Emma"}'),
    "json-5": ('{"open": true}', '{"open": "true"}'),
    "sorting-1": ("apple, fig, pear", "pear, apple, fig"),
    "sorting-2": ("1. Mouse\n2. Dog\n3. Elephant", "elephant, dog, mouse"),
    "sorting-3": ("March, July, and November", "July, March, November"),
    "sorting-4": ("Morning, noon, evening", "evening, morning, noon"),
    "sorting-5": ("fig, kiwi, banana", "banana, fig, kiwi"),
    "logic-1": ("Yes, Tom is an animal.", "No."),
    "logic-2": ("The youngest of the three is Cara.", "Anna"),
    "logic-3": ("Yes", "No, it is dark."),
    "logic-4": ('The word that does not belong is "hammer".', "pear"),
    "logic-5": ("No.", "Yes, it follows."),
    "logic-6": ("Yes, it is.", "No"),
    "time-1": ("Tomorrow is Saturday.", "Thursday"),
    "time-2": ("July comes after June.", "May"),
    "time-3": ("A week has 7 days.", "There are 5 days."),
    "time-4": ("2021-03-05", "2021-05-03"),
    "time-5": ("Spring.", "autumn"),
    "time-6": ("15:30", "3:30"),
    "sense-1": ("B) scissors", "A"),
    "sense-2": ("The answer is D.", "in an oven"),
    "sense-3": ("A", "C) gloves"),
    "sense-4": ("It breaks.", "B"),
    "sense-5": ("(B) switch on a lamp", "D"),
    "sense-6": ("**D**", "A feather is the heaviest: A"),
    "everyday-1": ("Happy birthday, Sam!", "Best wishes, Sam!"),
    "everyday-2": ("I am sorry, I will be late for the meeting.", "See you at the meeting."),
    "everyday-3": ("An umbrella.", "A spoon."),
    "everyday-4": ("Put it in boiling water for eight minutes.", "Fry it in a pan."),
    "everyday-5": ("- lettuce\n- tomatoes", "- nails\n- glue"),
    "code-1": (
        "```python\ndef is_even(n):\n    return n % 2 == 0\n```",
        "def is_even(n):\n    return True",
    ),
    "code-2": (
        "def reverse(text):\n    return text[::-1]",
        "```python\ndef reverse(text):\n    return text\n```",
    ),
    "code-3": (
        "```python\ndef largest(numbers):\n    return max(numbers)\n```",
        "```python\ndef largest(numbers):\n    return numbers[0]\n```",
    ),
    "code-4": (
        "```python\ndef first_word(text):\n    return text.split()[0]\n```",
        "```python\ndef first_word(text):\n    return text[0]\n```",
    ),
    "code-5": (
        '```python\ndef greet(name):\n    return f"Hello, {name}!"\n```',
        '```python\ndef greet(name):\n    return "Hello, NAME!"\n```',
    ),
}


def test_every_item_has_its_answers() -> None:
    assert ANSWERS.keys() == ITEMS.keys()
    assert len(ITEMS) >= 72


@pytest.mark.parametrize("name", ITEMS)
def test_a_right_answer_is_accepted_and_a_wrong_one_refused(name: str) -> None:
    right, wrong = ANSWERS[name]
    assert grade(ITEMS[name], right) == (True, grade(ITEMS[name], right).extracted, None)
    refused = grade(ITEMS[name], wrong)
    assert not refused.correct
    assert refused.why


@pytest.mark.parametrize("name", ITEMS)
def test_neither_silence_nor_the_question_itself_is_an_answer(name: str) -> None:
    item = ITEMS[name]
    assert not grade(item, "").correct
    assert not grade(item, "I am sorry, I cannot answer that.").correct
    if item.kind != "reading":  # the text holds the answer
        assert not grade(item, item.question).correct


def test_kinds_and_graders_vary() -> None:
    kinds = Counter(item.kind for item in ITEMS.values())
    assert len(kinds) >= 10
    assert max(kinds.values()) <= 10
    graders = {item.grader.kind for item in ITEMS.values() if item.grader}
    assert graders == {"contains", "choice", "regex", "json", "numeric", "code"}
