"""Commands on webhooks: where the ends of jobs are told, and what was sent there."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer
from rich.text import Text

from pared.cli.exits import FAILED
from pared.cli.rendering import err, out, plain_table, print_ids, print_json, print_table
from pared.cli.shared_options import AsJson, OnlyIds, Quiet
from pared.client import Client
from pared.statuses import DeliveryStatus

app = typer.Typer(no_args_is_help=True, help="Have the ends of your jobs posted to a URL, and see what was sent.")

WebhookId = Annotated[str, typer.Argument(metavar="ID", help="The id of a webhook, as `pared webhooks ls` prints it.")]


@app.command("add")
def add_webhook(
    url: Annotated[str, typer.Argument(metavar="URL", help="https:// or http://, at a public address.")],
    event: Annotated[
        list[str] | None,
        typer.Option(help="job.succeeded, job.failed or job.canceled; may be given several times.", show_default="all"),
    ] = None,
    description: Annotated[str | None, typer.Option(help="A text to tell it by.", show_default="none")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a webhook, and print its id and the secret that its notices are signed with, which is shown this once."""
    with Client() as client:
        made = client.webhooks.add(url, event, description)
    if as_json:
        print_json(made.model_dump(mode="json"))
        return
    out.print(made.id)
    out.print(made.secret, soft_wrap=True)
    err.print(f"The second line is its secret, shown this once. Try it with `pared webhooks test {made.id}`.")


@app.command("ls")
def list_webhooks(as_json: AsJson = False, quiet: OnlyIds = False) -> None:
    """List webhooks, newest first."""
    with Client() as client:
        found = list(client.webhooks.list())
    if as_json:
        print_json([each.model_dump(mode="json", exclude={"secret"}) for each in found])
        return
    if quiet:
        print_ids(each.id for each in found)
        return
    table = plain_table("id", "state", "events", "url", "description")
    for each in found:
        state = "disabled" if each.disabled_at else "failing" if each.failing_since else "works"
        events = ", ".join(name.removeprefix("job.") for name in each.events)
        table.add_row(each.id, state, events, Text(each.url), Text(each.description or ""))
    print_table(table)
    for each in found:
        if each.disabled_reason:
            out.print(Text(f"{each.id} is disabled: {each.disabled_reason} A test that is delivered enables it."))


@app.command("rm")
def remove_webhooks(
    webhook_ids: Annotated[list[str], typer.Argument(metavar="ID…")], as_json: AsJson = False, quiet: Quiet = False
) -> None:
    """Delete webhooks, with what was sent to them."""
    with Client() as client:
        for webhook_id in webhook_ids:
            client.webhooks.delete(webhook_id)
            if not as_json:
                out.print(f"deleted {webhook_id}")
    if as_json:
        print_json({"deleted": webhook_ids})


@app.command("test")
def try_webhook(webhook_id: WebhookId, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Send a notice of no job, and say what became of it; exit code 1 if it did not arrive."""
    with Client() as client:
        sent = client.webhooks.test(webhook_id)
    if as_json:
        print_json(sent.model_dump(mode="json"))
    else:
        out.print(Text(str(sent)), soft_wrap=True)
    if sent.status != "delivered":
        raise typer.Exit(FAILED)


@app.command("deliveries")
def list_deliveries(
    webhook_id: WebhookId,
    status: Annotated[
        DeliveryStatus | None, typer.Option(help="Only deliveries in this state.", show_default="any")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    as_json: AsJson = False,
    quiet: OnlyIds = False,
) -> None:
    """List what was sent to a webhook, newest first."""
    with Client() as client:
        found = list(islice(client.webhooks.deliveries(webhook_id, status), limit))
    if as_json:
        print_json([each.model_dump(mode="json") for each in found])
        return
    if quiet:
        print_ids(each.id for each in found)
        return
    table = plain_table("id", "event", "job", "status", "attempts", "next", "problem")
    for each in found:
        next_at = f"{each.next_at:%Y-%m-%d %H:%M:%S}" if each.next_at else ""
        row = (each.id, each.event, each.job or "", each.status, str(each.attempts), next_at, each.problem or "")
        table.add_row(*map(Text, row))
    print_table(table)


@app.command("replay")
def replay_delivery(
    webhook_id: WebhookId,
    delivery_id: Annotated[str, typer.Argument(metavar="DELIVERY", help="As `pared webhooks deliveries` prints it.")],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Send a delivery again at once, with the same id."""
    with Client() as client:
        again = client.webhooks.replay(webhook_id, delivery_id)
    if as_json:
        print_json(again.model_dump(mode="json"))
    else:
        out.print(Text(str(again)), soft_wrap=True)
