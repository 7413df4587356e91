"""FastAPI with one route that always says the same, for `api_rates.py`."""

from fastapi import FastAPI

app = FastAPI()


@app.get("/constant")
async def constant() -> dict[str, int]:
    """A few bytes."""
    return {"a": 1}
