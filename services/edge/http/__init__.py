"""The HTTP door: OpenAI's chat API in front of the same walk that gRPC takes."""
