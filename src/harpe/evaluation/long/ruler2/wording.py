"""The wording of RULER v2's tasks, letter by letter that of its prepare_niah.py, prepare_mmlu.py and prepare_qa.py
(NVIDIA/NeMo-Skills, Apache-2.0): prompts are a benchmark's data."""

from __future__ import annotations

NEEDLE = "One of the special magic numbers for {key} is: {value}."
ONE_NUMBER = (
    "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the "
    "number afterwards.\n{context}\nWhat is the special magic number for {query} mentioned in the provided text? The "
    "special magic number for {query} mentioned in the provided text is"
)
ALL_NUMBERS = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize them. I will quiz you "
    "about the numbers afterwards.\n{context}\nWhat are all the special magic numbers for {query} mentioned in the "
    "provided text? The special magic numbers for {query} mentioned in the provided text are"
)

QUESTION = "Question {number}: {question}"
_QUESTIONS = "Below are some questions. I will ask you to "
COPY_ONE = f"{_QUESTIONS}copy one of them. Please copy and paste the question you find."
COPY_SOME = f"{_QUESTIONS}copy some of them. Please copy and paste the questions you find."
SOLVE_ONE = (
    f"{_QUESTIONS}solve one of them. Please solve the question you find and make sure to put the answer (and only "
    "answer) inside \\boxed\\{\\}."
)
COPY = "Please copy the {order}Question {number} from the context."
COPY_ALL = "Please find and copy all the Question {number} from the context."
COPY_ALL_THEN_ONE = (
    "Please first copy all the Question {number} from the context and then copy the {order}Question {number} at the "
    "end."
)
SOLVE = "Please solve the Question {number} from the context with an answer from A, B, C, D."
COPY_THEN_SOLVE = "Please copy the Question {number} from the context and then solve it with an answer from A, B, C, D."
ORDER = "{ordinal} (1 indexed) "
SOLUTION = "\nSolution: \\boxed{{{letter}}}"
EXAMPLES = (
    "Here are some examples to help you understand the task:\n\n{examples}\n\nHere is the actual task you need to "
    "solve:\n\n"
)

DOCUMENT = "Document {number}:\n{text}"
_DOCUMENTS = "Below are some documents. I will "
FIND_TEXT = (
    f"{_DOCUMENTS}give you a text at the end. Please find the document index of the text. Only give me the index "
    "without any document contents."
)
FIND_SOURCE = (
    f"{_DOCUMENTS}give you a question at the end. Please find the index of the most relevant document that can help "
    "answer the question. Only give me the index without any document contents."
)
ANSWER = f"{_DOCUMENTS}ask you to answer a question based on the documents. Please answer the question."
WHERE_IS_TEXT = "Text: {text}\nMost relevant document index:"
WHERE_IS_SOURCE = "Question: {question}\nIndex of the most relevant document that can help answer the question:"
ANSWER_FROM_ALL = "Please answer the following question based on the documents.\n\nQuestion: {question}"
COPY_THEN_ANSWER = (
    "Please first find and copy paste the documents relevant to the following question and then answer it based on the "
    "documents you find.\n\nQuestion: {question}"
)
