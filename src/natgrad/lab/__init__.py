"""The lab: experiments, their data and networks, the command line. Nothing imports it."""
