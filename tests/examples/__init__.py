"""The examples with a framework, each started as a process of its own against a remote that stands for the real one."""
