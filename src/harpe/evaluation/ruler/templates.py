"""The wording of the tasks and of the chat formats, as the published program has it, letter by letter."""

from __future__ import annotations

from harpe.errors import HarpeError

NEEDLE = "One of the special magic {type_needle_v} for {key} is: {value}."
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
DOCUMENT = "Document {i}:\n{document}"

_NIAH = (
    "Some special magic {type_needle_v} are hidden within the following text. Make sure to memorize it. I will quiz "
    "you about the {type_needle_v} afterwards.\n{context}\nWhat are all the special magic {type_needle_v} for {query} "
    "mentioned in the provided text?"
)
_NIAH_PREFIX = " The special magic {type_needle_v} for {query} mentioned in the provided text are"
_VT = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\nQuestion: Find "
    "all variables that are assigned the value {query} in the text above."
)
_VT_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {num_v} variables are assigned the "
    "value {query}, they are: "
)
_CWE = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n{context}\nQuestion: What are the 10 most common words in the above list?"
)
_CWE_PREFIX = " Answer: The top 10 words that appear most often in the list are:"
_FWE = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the "
    "three most frequently appeared words in the above coded text?"
)
_FWE_PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"
_ONLY = "Only give me the answer and do not output any other words."
_QA = (
    f"Answer the question based on the given documents. {_ONLY}\n\nThe following are given "
    f"documents.\n\n{{context}}\n\nAnswer the question based on the given documents. {_ONLY}\n\nQuestion: {{query}}"
)
_QA_PREFIX = " Answer:"

TASK_TEMPLATES = {
    "niah": (_NIAH, _NIAH_PREFIX),
    "vt": (_VT, _VT_PREFIX),
    "cwe": (_CWE, _CWE_PREFIX),
    "fwe": (_FWE, _FWE_PREFIX),
    "qa": (_QA, _QA_PREFIX),
}
"""Question and the beginning of the answer, by kind of task."""

CHAT_TEMPLATES = {
    "base": "{task_template}",
    "meta-chat": "[INST] {task_template} [/INST]",
    "vicuna-chat": (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: {task_template} ASSISTANT:"
    ),
    "lwm-chat": "You are a helpful assistant. USER: {task_template} ASSISTANT: ",
    "command-r-chat": (
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>{task_template}<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
    ),
    "chatglm-chat": "[gMASK]sop<|user|> \n {task_template}<|assistant|> \n ",
    "RWKV": (
        "User: hi\n\nAssistant: Hi. I am your assistant and I will provide expert full response in full details. "
        "Please feel free to ask any question and I will always answer it\n\nUser: {task_template}\n\nAssistant:"
    ),
    "Phi3": "<|user|>\n{task_template}<|end|>\n<|assistant|>\n",
    "meta-llama3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{task_template}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "jamba": "<|startoftext|><|bom|><|system|> <|eom|><|bom|><|user|> {task_template}<|eom|><|bom|><|assistant|>",
    "nemotron5-instruct": "<SPECIAL_10>System\n\n<SPECIAL_11>User\n{task_template}\n<SPECIAL_11>Assistant\n",
}
"""Formats that wrap the question; the beginning of the answer comes after them."""


def template_of(kind: str, chat: str = "base") -> str:
    """The whole template of a kind of task: question in its chat format, then the beginning of the answer."""
    if chat not in CHAT_TEMPLATES:
        raise HarpeError(f"--template {chat} is unknown; RULER has {', '.join(CHAT_TEMPLATES)}.")
    question, prefix = TASK_TEMPLATES[kind]
    return CHAT_TEMPLATES[chat].format(task_template=question) + prefix


def split_prefix(text: str, kind: str) -> tuple[str, str]:
    """The text before the answer's beginning, and that beginning; its first ten characters are searched backwards."""
    cut = text.rfind(TASK_TEMPLATES[kind][1][:10])
    return text[:cut], text[cut:]
