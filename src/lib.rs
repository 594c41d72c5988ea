//! Keeps keyed state identical in several processes of one host.
