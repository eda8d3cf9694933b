"""Request logs of other systems, read line by line: `read_log` knows OpenAI-style, LiteLLM and Langfuse exports, JSON and CSV."""

from services.cli.logs.reader import Form, form_of, read_log
from services.cli.logs.record import LogRecord, Malformed

__all__ = ["Form", "LogRecord", "Malformed", "form_of", "read_log"]
