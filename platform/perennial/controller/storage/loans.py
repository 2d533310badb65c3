"""Name the new place of a store that moved to those of which it borrows, and those it lends to."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from perennial.errors import InputError
from perennial.store import Store, open_store
from perennial.store.borrowing import (
    BORROWED,
    BorrowingStore,
    Loan,
    place_at,
    place_from,
    read_borrowed,
    read_pins,
    write_borrowed,
    write_pin,
)
from perennial.store.transfer import have_object

_OBJECTS_AT_ONCE = 8


def own_folder(store: Store, folder: str) -> None:
    """Have a borrowed folder in the store itself, and give the loan back. Safe to repeat and kill.

    Args:
        store: of a run that this process has to itself.
        folder: key of the folder; one that is not borrowed stays as it is.
    """
    if not isinstance(store, BorrowingStore):
        return
    if folder in store.lenders:
        infos = store.lenders[folder].list(folder)
        copy = partial(have_object, store.lenders[folder], store.own, ())
        with ThreadPoolExecutor(_OBJECTS_AT_ONCE) as pool:
            list(pool.map(copy, infos))
        loans = [_without(loan, folder) for loan in read_borrowed(store.own)]
        write_borrowed(store.own, loans)
        store.give_back(folder)
    # Also of an earlier try, which was killed before this.
    for loan in read_borrowed(store.own):
        lender = open_store(place_at(store.own, loan.place))
        write_pin(lender, replace(loan, place=place_from(lender, store.own)))


def _without(loan: Loan, folder: str) -> Loan:
    return replace(loan, folders=tuple(its for its in loan.folders if its != folder))


def find_borrower(store: Store, folder: str) -> Store | None:
    """Return a store that borrows a folder of this one; None where none does any more."""
    for pin in read_pins(store):
        borrower = open_store(place_at(store, pin.place))
        if folder in pin.folders and borrower.exists(BORROWED):
            return borrower
    return None


def list_owners(store: Store, folder: str) -> list[Store]:
    """Return the stores of forks of this one that have a folder of their own, not borrowed."""
    forks = [(pin, open_store(place_at(store, pin.place))) for pin in read_pins(store)]
    return [fork for pin, fork in forks if folder not in pin.folders and fork.list(folder)]


def carry_loans(source: Store, target: Store) -> None:
    """Write into a copy of a store what it borrows and lends, as seen from there.

    Args:
        source: the store.
        target: its copy.
    """
    borrowed = read_borrowed(source)
    if borrowed:
        lenders = [open_store(place_at(source, loan.place)) for loan in borrowed]
        places = [place_from(target, lender) for lender in lenders]
        pairs = zip(borrowed, places, strict=True)
        write_borrowed(target, [replace(loan, place=place) for loan, place in pairs])
    for pin in read_pins(source):
        borrower = open_store(place_at(source, pin.place))
        write_pin(target, replace(pin, place=place_from(target, borrower)))


def repoint(source: Store, target: Store, log: Callable[[str], None]) -> None:
    """Have lenders and borrowers of a store that moved name its new place. Safe to repeat.

    Args:
        source: the place that it left.
        target: the place where it is.
        log: shows a line to the user, about a store that cannot be written.
    """
    for loan in read_borrowed(target):
        lender = open_store(place_at(target, loan.place))
        try:
            write_pin(lender, replace(loan, place=place_from(lender, target)))
        except OSError as refused:
            log(f"notice: {lender.url}, of which this run borrows, was not written ({refused})")
    for pin in read_pins(target):
        borrower = open_store(place_at(target, pin.place))
        try:
            loans = read_borrowed(borrower)
            if not any(loan.id == pin.id for loan in loans):
                raise FileNotFoundError("there is no run that borrows of this one")
            write_borrowed(borrower, [_moved(loan, borrower, source, target) for loan in loans])
        except (OSError, InputError) as refused:
            log(
                f"notice: {borrower.url}, which borrows of this run, does not know its new place "
                f"({refused}); repeat `perennial fork` with both run files"
            )


def _moved(loan: Loan, borrower: Store, source: Store, target: Store) -> Loan:
    """Return a loan with the new place of its lender, where that is the store that moved."""
    lender = open_store(place_at(borrower, loan.place))
    if lender.url != open_store(place_at(borrower, place_from(borrower, source))).url:
        return loan
    return replace(loan, place=place_from(borrower, target))
