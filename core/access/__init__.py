"""Who may reach an installation: names and sites of requests, rights of its folder."""
