"""Root becomes somebody else for good; nobody else becomes anything."""

import os
import pwd
import sys
from subprocess import run

import pytest

from proxy.process.privileges import PrivilegeError, drop, hand_over

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
ME = pwd.getpwuid(os.getuid()).pw_name


@root
def test_root_becomes_the_user_with_its_groups_and_can_not_go_back():
    code = """
import os
from proxy.process.privileges import drop
drop("nobody")
assert os.getresuid() == (65534,) * 3, os.getresuid()
assert 0 not in os.getgroups() and 0 not in os.getresgid()
drop("nobody")
try:
    os.setuid(0)
except PermissionError:
    print("gone for good")
"""
    assert run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout == "gone for good\n"


@root
def test_what_root_put_into_the_state_folder_is_given_to_the_user(tmp_path):
    folder = tmp_path / "state"
    (folder / "self-signed").mkdir(parents=True)
    (folder / "secret").write_text("x")
    theirs = folder / "theirs"
    theirs.write_text("x")
    os.chown(theirs, 1234, 1234)
    outside = tmp_path / "outside"
    outside.write_text("x")
    (folder / "link").symlink_to(outside)
    hand_over(folder, "nobody")
    assert {path.name: path.lstat().st_uid for path in (folder, *folder.rglob("*"))} == {
        "state": 65534,
        "self-signed": 65534,
        "secret": 65534,
        "link": 65534,
        "theirs": 1234,
    }
    assert outside.stat().st_uid == 0


def test_who_one_is_already_needs_no_root():
    drop(ME)


def test_a_user_that_there_is_not(tmp_path):
    with pytest.raises(PrivilegeError, match=r"there is no user nobody-of-that-name \(server.user\)"):
        drop("nobody-of-that-name")
    with pytest.raises(PrivilegeError, match="there is no user"):
        hand_over(tmp_path, "nobody-of-that-name")
