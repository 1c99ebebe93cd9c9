"""Clusters that one YAML file describes: `lattica up`, `down`, `status CLUSTER.yaml` and `exec`.

    document   YAML with the line and column of every value        cluster    what the file says, checked
    plan       pure: who founds, returns, joins, is left            places     data directories of a local cluster
    shells     how a command gets to a host: here, or by ssh        nodes      a node asked, started, stopped
    crew       all hosts at once, at most so many                   progress   what people see meanwhile
    up, down, survey (status and exec)   the verbs                  report     how a verb went

Nothing is kept beside the nodes and their data directories: whoever has the file and may log in can run every verb.
"""
