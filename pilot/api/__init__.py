"""The five APIs: what a pilot does, for programs that are no pilot. One module each; the pilot itself is built on the same code.

    data          stage-in and stage-out of many files at once, with the copytools of this installation
    communicator  speak with a server as a pilot does: register, take jobs, report, be alive, end
    environment   what this node has, and what the batch system gave of it
    services      benchmark and memory reports
    container     run a command with a timer, a time-out and a container around it

All of them need the standard library alone, but for the communicator (urllib3). How to use each: docs/pilot-apis.md.
"""
