"""One attempt of one stage: claim, child process, commit, publish."""
