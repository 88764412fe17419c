"""The dialog: every stage against every message, then against a grammar of its own."""

from __future__ import annotations

import pickle
import re
from typing import Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tractor._protocol.dialog import ALLOWED, Dialog, Stage, Violation
from tractor.msg.types import (
    Aid,
    CancelAck,
    Error,
    Return,
    SpawnSpec,
    Start,
    StartAck,
    Started,
    Stop,
    Yield,
    __msg_types__,
)

EXAMPLES: Final = 150  # of the state machine; --proof-rounds raises it

# One letter for each message that can come, a `StartAck` by its kind of function.
MESSAGES: Final = {
    'c': StartAck('c1', 'context'),
    'f': StartAck('c1', 'asyncfunc'),
    'g': StartAck('c1', 'asyncgen'),
    'D': Started('c1', pld=1),
    'Y': Yield('c1', pld=1),
    'P': Stop('c1'),
    'R': Return('c1', pld=1),
    'K': CancelAck('c1', pld=True),
    'E': Error(('a', 'u'), 'ValueError', 'ValueError', [('a', 'u')], cid='c1'),
    'S': Start('c1', 'm', 'f', {}, ('a', 'u')),
    'A': Aid('a', 'u'),
    'O': SpawnSpec({}, {}, {}, [], None),
}
LETTERS: Final = ''.join(MESSAGES)

# All beginnings of legal dialogs, as the contract words them: the caller gets an ack,
# then what the kind of function sends, each stream ended by at most one Stop; or just
# an error.  The called side gets the caller's half of the stream.
GRAMMAR: Final = {
    Stage.CALLED: re.compile('(E|c([RE]|DY*P?[RE]?)?|f[RKE]?|gY*[PE]?)?'),
    Stage.SERVING: re.compile('Y*P?E?'),
}

# What each stage leads to, letter by letter; what is not named is a violation.
TABLE: Final = {
    Stage.CALLED: {
        'c': Stage.ACKED,
        'f': Stage.RUNNING,
        'g': Stage.PULLING,
        'E': Stage.FINAL,
    },
    Stage.ACKED: {'D': Stage.OPEN, 'R': Stage.FINAL, 'E': Stage.FINAL},
    Stage.OPEN: {
        'Y': Stage.OPEN,
        'P': Stage.STOPPED,
        'R': Stage.FINAL,
        'E': Stage.FINAL,
    },
    Stage.STOPPED: {'R': Stage.FINAL, 'E': Stage.FINAL},
    Stage.RUNNING: {'R': Stage.FINAL, 'K': Stage.FINAL, 'E': Stage.FINAL},
    Stage.PULLING: {'Y': Stage.PULLING, 'P': Stage.FINAL, 'E': Stage.FINAL},
    Stage.SERVING: {'Y': Stage.SERVING, 'P': Stage.ENDED, 'E': Stage.FINAL},
    Stage.ENDED: {'E': Stage.FINAL},
    Stage.FINAL: {},
}


def may_follow(side: Stage, word: str, letter: str) -> bool:
    """Whether the grammar lets a message follow the ones that came."""
    return GRAMMAR[side].fullmatch(word + letter) is not None


def test_the_letters_cover_every_wire_message():
    """A message type that is added to the wire has to get its row here."""
    assert {type(msg) for msg in MESSAGES.values()} == set(__msg_types__)


def test_every_stage_has_a_row():
    """No stage is left without a rule, here or there."""
    assert set(ALLOWED) == set(TABLE) == set(Stage)


@pytest.mark.parametrize('letter', LETTERS)
@pytest.mark.parametrize('stage', Stage)
def test_each_message_in_each_stage(stage, letter):
    """A message leads to the one stage the table names, or leaves the stage alone."""
    dialog = Dialog('c1', stage)
    expected = TABLE[stage].get(letter)
    if expected is None:
        with pytest.raises(Violation):
            dialog.receive(MESSAGES[letter])
        assert dialog.stage is stage
    else:
        dialog.receive(MESSAGES[letter])
        assert dialog.stage is expected
    assert dialog.is_final is (dialog.stage is Stage.FINAL)


@pytest.mark.parametrize('side', GRAMMAR)
def test_every_short_dialog(side):
    """Up to six messages, the dialog takes what the grammar takes and nothing else."""
    words = ['']
    for _ in range(6):
        longer = []
        for word in words:
            for letter, msg in MESSAGES.items():
                dialog = Dialog('c1', side)
                for came in word:
                    dialog.receive(MESSAGES[came])
                if may_follow(side, word, letter):
                    dialog.receive(msg)
                    longer.append(word + letter)
                else:
                    with pytest.raises(Violation):
                        dialog.receive(msg)
        words = longer


@pytest.mark.parametrize('stage', Stage)
def test_the_end_is_final_from_every_stage(stage):
    """After `end()` nothing may come any more, whatever was open before."""
    dialog = Dialog('c1', stage)
    dialog.end()
    assert dialog.is_final
    for msg in MESSAGES.values():
        with pytest.raises(Violation):
            dialog.receive(msg)
    assert dialog.stage is Stage.FINAL


def test_a_dialog_starts_on_the_calling_side():
    """Whoever makes a dialog without a stage has sent a Start."""
    assert Dialog('c1').stage is Stage.CALLED


def test_stream_message_before_first_value_is_refused():
    """A Yield ahead of Started is a violation, and the dialog stays usable."""
    dialog = Dialog('c1')
    dialog.receive(MESSAGES['c'])
    with pytest.raises(Violation, match=r'Yield in stage ACKED of context c1'):
        dialog.receive(MESSAGES['Y'])
    dialog.receive(MESSAGES['D'])
    assert dialog.stage is Stage.OPEN


def test_a_violation_tells_what_might_have_come():
    """The text names the message, the stage, the context and the alternatives."""
    text = str(Violation('c9', Stage.STOPPED, Yield))
    assert text == (
        'Yield in stage STOPPED of context c9: Return, Error may come there'
    )
    assert str(Violation('c9', Stage.FINAL, Stop)).endswith(': nothing may come there')


def test_a_violation_survives_pickling():
    """Its facts are attributes and arrive with it."""
    err = pickle.loads(pickle.dumps(Violation('c9', Stage.OPEN, Start)))
    assert (err.cid, err.stage, err.kind) == ('c9', Stage.OPEN, Start)


class DialogMachine(RuleBasedStateMachine):
    """Any messages in any order, compared with the grammar."""

    @initialize(side=st.sampled_from(list(GRAMMAR)))
    def open(self, side):
        self.side = side
        self.word = ''
        self.ended = False
        self.dialog = Dialog('c1', side)

    @rule(letter=st.sampled_from(LETTERS))
    def anything_comes(self, letter):
        before = self.dialog.stage
        if not self.ended and may_follow(self.side, self.word, letter):
            self.dialog.receive(MESSAGES[letter])
            self.word += letter
            return
        with pytest.raises(Violation) as caught:
            self.dialog.receive(MESSAGES[letter])
        assert caught.value.stage is self.dialog.stage is before
        assert caught.value.kind is type(MESSAGES[letter])

    def following(self) -> list[str]:
        return [x for x in LETTERS if may_follow(self.side, self.word, x)]

    @precondition(lambda self: not self.ended and self.following())
    @rule(pick=st.integers(0, 11))
    def something_legal_comes(self, pick):
        letters = self.following()
        letter = letters[pick % len(letters)]
        self.dialog.receive(MESSAGES[letter])
        self.word += letter

    @precondition(lambda self: len(self.word) > 3)
    @rule()
    def peer_is_lost(self):
        self.dialog.end()
        self.ended = True

    @invariant()
    def final_means_that_nothing_may_follow(self):
        if hasattr(self, 'dialog'):
            assert self.dialog.is_final is (self.ended or not self.following())


def test_any_sequence_of_messages(pytestconfig):
    """The dialog and the grammar agree on every sequence."""
    rounds = pytestconfig.getoption('--proof-rounds', default=None) or 0
    run_state_machine_as_test(
        DialogMachine,
        settings=settings(
            max_examples=max(EXAMPLES, rounds),
            stateful_step_count=15,
            deadline=None,
            database=None,
        ),
    )
