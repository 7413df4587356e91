"""The only way tables come to be; run by `pared.state.session.migrate`."""
