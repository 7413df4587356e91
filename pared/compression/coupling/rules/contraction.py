"""The rules of linear layers, embeddings, matrix products and einsum: what is summed over together goes together."""

from __future__ import annotations

from pared.compression.coupling.interpreter import Call
from pared.compression.coupling.labels import Labels, Tracked, along, spanned
from pared.compression.coupling.rules.core import LabelTracker, rule
from pared.compression.coupling.rules.elementwise import broadcast


def contract(tracker: LabelTracker, call: Call, operands: list[tuple[Tracked, str]], out_letters: str) -> list[Labels]:
    """Einstein notation: dimensions of one letter are tied together; those in the output carry on.

    Those that two activations share with the output are heads: it is made for each of them apart.
    """
    by_letter: dict[str, Labels] = {}
    sizes: dict[str, int] = {}
    for tracked, letters in operands:
        for letter, size in zip(letters, tracked.tensor.shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    for tracked, letters in operands:
        for layer in tracked.layers:
            if len(spanned(layer)) > 1:
                tracker.fix([layer], call, "takes channels that are spread over several dimensions")
        for dim, letter in enumerate(letters):
            if tracked.tensor.shape[dim] == 1:
                continue  # broadcast, or nothing to remove
            labels = tracked.axis(dim)
            if letter in by_letter:
                tracker.union(by_letter[letter], labels, call, "multiplies them with channels that stay")
                if not any(t.name for t, of in operands if letter in of):
                    (tracker.heads if letter in out_letters else tracker.widths).append(labels)
            if letter not in by_letter or not by_letter[letter].any():
                by_letter[letter] = labels
    rank = len(out_letters)
    return [
        along(by_letter[letter], dim, rank)
        for dim, letter in enumerate(out_letters)
        if letter in by_letter and by_letter[letter].any()
    ]


@rule("linear", nature="layer")
def linear(tracker: LabelTracker, call: Call) -> None:
    """y[..., o] = Σ_i x[..., i] w[o, i] + b[o]."""
    x, w, b = call.arguments["input"], call.arguments["weight"], call.arguments.get("bias")
    batch = letters(x.tensor.dim() - 1)
    out = batch + "O" if w.tensor.dim() == 2 else batch
    w_letters = "OI" if w.tensor.dim() == 2 else "I"
    operands = [(x, batch + "I"), (w, w_letters)]
    if b is not None and b.tensor.dim() == 1:
        operands.append((b, "O"))
    call.results[0].layers = contract(tracker, call, operands, out)
    tracker.use(call, {"weight": w, "bias": b}, ("weight", 0))


@rule("matmul mm bmm")
def matmul(tracker: LabelTracker, call: Call) -> None:
    """Matrix products: mm, bmm, matmul, with broadcasting of the batch dimensions."""
    a, b = call.tensors[:2]
    _product_use(tracker, call, a, b)
    if a.tensor.dim() < 2 or b.tensor.dim() < 2:
        tracker.fix([*a.layers, *b.layers], call)
        return
    batch = letters(max(a.tensor.dim(), b.tensor.dim()) - 2)
    a_batch = batch[len(batch) - (a.tensor.dim() - 2) :]
    b_batch = batch[len(batch) - (b.tensor.dim() - 2) :]
    call.results[0].layers = contract(tracker, call, [(a, a_batch + "MK"), (b, b_batch + "KN")], batch + "MN")


@rule("addmm baddbmm")
def addmm(tracker: LabelTracker, call: Call) -> None:
    """addmm, baddbmm: c + a @ b."""
    c, a, b = call.tensors[:3]
    _product_use(tracker, call, a, b, c)
    batch = letters(a.tensor.dim() - 2)
    product = Tracked(call.results[0].tensor)
    product.layers = contract(tracker, call, [(a, batch + "MK"), (b, batch + "KN")], batch + "MN")
    call.results[0].layers = broadcast(tracker, call, [product, c], product.tensor.dim())


def _product_use(tracker: LabelTracker, call: Call, a: Tracked, b: Tracked, bias: Tracked | None = None) -> None:
    """x @ W is a layer with weights (in, out), W @ x one with weights (out, in)."""
    if b.name and a.name:
        tracker.use(call, {"weight": b, "other": a, "bias": bias}, None)
    elif a.name:
        tracker.use(call, {"weight": a, "bias": bias}, ("weight", a.tensor.dim() - 2) if a.tensor.dim() >= 2 else None)
    else:
        tracker.use(call, {"weight": b, "bias": bias}, ("weight", b.tensor.dim() - 1) if b.tensor.dim() >= 2 else None)


@rule("einsum")
def einsum(tracker: LabelTracker, call: Call) -> None:
    """torch.einsum: `...` stands for leading dimensions; without `->` the letters met once come out in order."""
    left, arrow, out = call.arguments["equation"].replace(" ", "").partition("->")
    operands, terms = call.arguments["tensors"], left.split(",")
    if not arrow:
        once = sorted(letter for letter in set(left) - set(".,") if left.count(letter) == 1)
        out = ("..." if "..." in left else "") + "".join(once)
    ranks = [t.tensor.dim() - len(term.replace("...", "")) for t, term in zip(operands, terms, strict=True)]
    leading = "0123456789"[: max(ranks)]
    spelled = [term.replace("...", leading[len(leading) - rank :]) for term, rank in zip(terms, ranks, strict=True)]
    out = out.replace("...", leading)
    call.results[0].layers = contract(tracker, call, list(zip(operands, spelled, strict=True)), out)


@rule("embedding")
def embedding(tracker: LabelTracker, call: Call) -> None:
    """Rows of w (tokens, width), picked by ids (...): the result is (..., width)."""
    w = call.arguments["weight"]
    tracker.use(call, {"weight": w}, ("weight", 1))
    tracker.fix(w.spanning({0}), call, "one row is one token of the vocabulary")
    out = call.results[0]
    units = w.axis(1)
    if units.any():
        out.layers = [along(units, -1, out.tensor.dim())]


@rule("embedding_bag _embedding_bag")
def embedding_bag(tracker: LabelTracker, call: Call) -> None:
    """As embedding, then a mean, sum or maximum over the tokens."""
    w = call.arguments["weight"]
    tracker.use(call, {"weight": w}, ("weight", 1))
    tracker.fix(w.spanning({0}), call, "one row is one token of the vocabulary")
    if w.axis(1).any():
        call.results[0].layers = [along(w.axis(1), -1, 2)]


def letters(count: int) -> str:
    """As many letters, for dimensions that a product keeps apart; those in capitals are free."""
    return "abcdefghijklmnopqrstuvwxyz"[:count]
