"""Asks the HTTP door through callers' libraries, with nothing but a base URL and a key; prints what came back as JSON.

Runs in an interpreter that has them: `ask.py BASE_URL KEY`.
"""

import json
import sys

import openai
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

QUESTION = "Say one word."
BRIEF = {"temperature": 0, "max_tokens": 16}


@tool
def find_order(number: str) -> str:
    """Finds an order by its number."""
    return number


def langchain(url: str, key: str) -> dict[str, object]:
    """ChatOpenAI: whole, streamed, with a tool on offer; and its embeddings."""
    model = ChatOpenAI(base_url=url, api_key=key, model="auto", stream_usage=True, max_retries=0, **BRIEF)
    messages = [SystemMessage("Be brief."), HumanMessage(QUESTION)]
    whole = model.invoke(messages)
    pieces = list(model.stream(messages))
    with_tool = model.bind_tools([find_order]).invoke(messages)
    vectors = OpenAIEmbeddings(base_url=url, api_key=key, model="any", check_embedding_ctx_length=False)
    return {
        "whole": whole.text,
        "tokens": whole.usage_metadata["total_tokens"],
        "stream": "".join(piece.text for piece in pieces),
        "stream_tokens": sum(piece.usage_metadata["total_tokens"] for piece in pieces if piece.usage_metadata),
        "with_tool": with_tool.text or with_tool.tool_calls,
        "dimensions": len(vectors.embed_query(QUESTION)),
    }


def llama_index(url: str, key: str) -> dict[str, object]:
    """OpenAILike: whole and streamed."""
    model = OpenAILike(
        api_base=url, api_key=key, model="auto", is_chat_model=True, context_window=4096, max_retries=0, **BRIEF
    )
    messages = [ChatMessage(role="user", content=QUESTION)]
    pieces = list(model.stream_chat(messages))
    return {"whole": model.chat(messages).message.content, "stream": pieces[-1].message.content}


def refused(url: str) -> str:
    """What LangChain makes of a wrong key."""
    try:
        ChatOpenAI(base_url=url, api_key="nobody", model="auto", max_retries=0).invoke(QUESTION)
    except openai.AuthenticationError as error:
        return str(error.status_code)
    return "let in"


if __name__ == "__main__":
    base, secret = sys.argv[1:]
    told = {"langchain": langchain(base, secret), "llama_index": llama_index(base, secret), "wrong_key": refused(base)}
    print(json.dumps(told))
