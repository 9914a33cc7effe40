"""Greedy completions from a server that speaks OpenAI's protocol, such as vLLM, SGLang or `transformers serve`."""

from __future__ import annotations

import os
from typing import Any, Literal
from urllib.parse import urlsplit

from harpe.errors import HarpeError, optional_module

Endpoint = Literal["completions", "chat"]

RETRIES = 5
"""Tries after the first one, 0.5, 1, 2, 4 and 8 seconds apart: enough for a hiccup, and the evaluation can be resumed
after more."""
PATIENCE = 3600.0
"""Seconds that one answer may take: a million tokens are read in minutes."""


GREEDY = {"temperature": 0, "top_p": 1, "frequency_penalty": 0}
"""What the protocol has for greedy answers. Servers take what is left open from the checkpoint's
generation_config.json: all of them temperature and top_p, and `transformers serve` a repetition penalty, which it has
under the name of frequency_penalty."""
PENALTY = "repetition_penalty"
"""Not of the protocol: vLLM and SGLang take it from generation_config.json where a request does not name it. Others
refuse the name."""


def base_url(address: str) -> str:
    """The address under which the endpoints lie: /v1 is put behind a host and port without a path.

    Raises HarpeError for what is no http or https address.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise HarpeError(f"--server {address} is no address; it looks like http://localhost:8000.")
    return address if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}/v1"


def _told(error: Any) -> str:
    """What a server says in the body of an error."""
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body.get("error") or body
    return " ".join(str(body or error.response.text or error.message).split())[:300]


class CompletionServer:
    """One model of a server. Methods may be called from several threads.

    The key is read from OPENAI_API_KEY, where a server wants one.

    Parameters
    ----------
    endpoint
        completions: the prompt is continued as it stands, as a base model would. chat: the prompt is one message of a
        user, which the server puts into the model's own chat format.

    Raises
    ------
    HarpeError
        For a bad address, and where the client is not installed.
    """

    def __init__(self, address: str, model: str, endpoint: Endpoint = "completions") -> None:
        self._errors = optional_module("openai", "openai", "--server needs")
        self._address, self._model, self._endpoint = address, model, endpoint
        self._takes_penalty = True
        self._client = self._errors.OpenAI(
            base_url=base_url(address),
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            timeout=self._errors.Timeout(PATIENCE, connect=10.0),
            max_retries=RETRIES,
        )

    @property
    def shown(self) -> str:
        """The address as files may tell it: without a name and password."""
        parts = urlsplit(base_url(self._address))
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()

    def models(self) -> dict[str, int | None]:
        """The names that the server lists, each with its context in tokens where that is told (vLLM does); empty where
        it lists none.

        `transformers serve` answers with an error where the hub's cache is empty, although it can complete.

        Raises HarpeError where no server can be reached, and where it wants a key.
        """
        try:
            listed = self._client.with_options(max_retries=0).models.list()
            return {str(entry.id): getattr(entry, "max_model_len", None) for entry in listed}
        except self._errors.OpenAIError as error:
            if isinstance(error, self._errors.APIStatusError) and error.status_code not in (401, 403):
                return {}
            raise self._refusal(error, "Is it running, and is this its address?") from error

    def complete(self, prompt: str, budget: int) -> str:
        """The greedy continuation of a prompt by at most `budget` tokens, which ends before the model's end-of-text
        token.

        Raises HarpeError where the server cannot be reached or fails, after `RETRIES` more tries, and where it refuses
        the request.
        """
        try:
            reply = self._ask(prompt, budget)
        except self._errors.OpenAIError as error:
            again = "What was answered is kept: the same command goes on where it was."
            raise self._refusal(error, again, f" {RETRIES + 1} times in a row") from error
        choices = getattr(reply, "choices", None)
        if not choices:
            raise HarpeError(
                f"--server {self._address} answered with something else than a completion. Does it speak OpenAI's "
                "protocol?"
            )
        return str(choices[0].message.content or "" if self._endpoint == "chat" else choices[0].text)

    def _ask(self, prompt: str, budget: int) -> Any:
        common = {"model": self._model, "max_tokens": budget, **GREEDY}
        extra = {PENALTY: 1.0} if self._takes_penalty else {}
        try:
            if self._endpoint == "chat":
                return self._client.chat.completions.create(
                    messages=[{"role": "user", "content": prompt}], **common, extra_body=extra
                )
            return self._client.completions.create(prompt=prompt, **common, extra_body=extra)
        except self._errors.APIStatusError as error:
            if not extra or error.status_code not in (400, 422) or PENALTY not in _told(error):
                raise
        # what it does not know, it does not take from the checkpoint under that name either
        self._takes_penalty = False
        return self._ask(prompt, budget)

    def _refusal(self, error: Any, advice: str, times: str = "") -> HarpeError:
        """The sentence for an error of the client."""
        where = f"--server {self._address}"
        if isinstance(error, self._errors.APITimeoutError):
            return HarpeError(f"{where} did not answer in time{times}. {advice}")
        if isinstance(error, self._errors.APIConnectionError):
            reason = " ".join(str(error.__cause__ or error).split())
            return HarpeError(f"{where} could not be reached{times} ({reason}). {advice}")
        if isinstance(error, (self._errors.AuthenticationError, self._errors.PermissionDeniedError)):
            return HarpeError(f"{where} refuses the key ({_told(error)}). Put the right one into OPENAI_API_KEY.")
        if not isinstance(error, self._errors.APIStatusError):
            return HarpeError(
                f"{where} answered in a way that is not OpenAI's protocol ({' '.join(str(error).split())[:300]})."
            )
        if error.status_code >= 500 or error.status_code in (408, 409, 429):
            return HarpeError(f"{where} failed{times} (HTTP {error.status_code}: {_told(error)}). {advice}")
        return HarpeError(
            f"{where} refused a request for --model {self._model} at the endpoint {self._endpoint} (HTTP "
            f"{error.status_code}: {_told(error)}). The name has to be the one that the server gives the model, and "
            "the prompt has to fit into its context."
        )
