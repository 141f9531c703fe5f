//! Plan of the faults in a run: links, hosts and tokens.
//!
//! Every fault ends by itself or when all faults are ended; no link has two faults at a time.

use std::time::Duration;

use turmoil::Sim;

use super::{
    dice::Dice,
    ledger::Ledger,
    store::{self, Shelf},
    wechat::{self, Wechat},
};
use crate::token::ProviderKind;

/// Severity of the faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weather {
    /// Tokens die; the network has only its ordinary latency.
    Calm,
    /// WeChat is slow, out of reach or loses answers; the store works.
    Abroad,
    /// All faults.
    Storm,
}

/// Fault that lasts at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Cut(Link),
    /// No segment gets from the first host to the second.
    OneWay(Link),
    /// Segments are held back, and arrive when the fault ends.
    Held(Link),
    /// Connections break from time to time.
    Lossy(Link),
    Slow(Link),
    StoreDown,
    NodeDown(&'static str),
    WechatSlow,
}

/// Direction from one host to another.
type Link = (&'static str, &'static str);

/// Plan of a run, and the faults that last at present.
pub(super) struct Chaos {
    weather: Weather,
    dice: Dice,
    active: Vec<(Duration, Fault)>,
    next_fault: Duration,
    next_death: Duration,
    next_zombie: Duration,
    /// Longest latency of an ordinary link.
    latency: Duration,
}

impl Chaos {
    pub(super) fn new(weather: Weather, mut dice: Dice, latency: Duration) -> Self {
        let (next_fault, next_death, next_zombie) = (
            dice.millis(1000..4000),
            dice.millis(2000..8000),
            dice.millis(3000..30_000),
        );
        Self {
            weather,
            dice,
            active: Vec::new(),
            next_fault,
            next_death,
            next_zombie,
            latency,
        }
    }

    /// Starts and ends the faults that are due, and kills the tokens that are due.
    pub(super) fn act(
        &mut self,
        sim: &mut Sim<'_>,
        nodes: &[&'static str],
        shelf: &Shelf,
        wechat: &Wechat,
        book: &Ledger,
    ) {
        let now = sim.elapsed();
        let over: Vec<Fault> = self
            .active
            .extract_if(.., |(end, _)| *end <= now)
            .map(|(_, fault)| fault)
            .collect();
        for fault in over {
            self.end(fault, sim, wechat, book);
        }
        if now >= self.next_death {
            wechat.revoke(now);
            self.next_death = now + self.dice.millis(3000..9000);
            if self.weather == Weather::Calm {
                self.next_zombie = self.next_zombie.max(now + Duration::from_secs(3));
            }
        }
        if now >= self.next_zombie && wechat.kind() == ProviderKind::Stable {
            wechat.kill_but_keep_giving(now);
            self.next_zombie = now + self.dice.millis(62_000..80_000);
            self.next_death = self.next_death.max(now + Duration::from_secs(4));
        }
        if now >= self.next_fault && self.weather != Weather::Calm {
            self.begin(sim, nodes, shelf, wechat, book);
            self.next_fault = now + self.dice.millis(200..3000);
        }
    }

    /// Ends all faults.
    pub(super) fn heal(&mut self, sim: &mut Sim<'_>, wechat: &Wechat, book: &Ledger) {
        for (_, fault) in std::mem::take(&mut self.active) {
            self.end(fault, sim, wechat, book);
        }
    }

    fn begin(
        &mut self,
        sim: &mut Sim<'_>,
        nodes: &[&'static str],
        shelf: &Shelf,
        wechat: &Wechat,
        book: &Ledger,
    ) {
        let fault = self.draw(nodes);
        if self
            .active
            .iter()
            .any(|(_, active)| active.is_in_the_way_of(&fault))
        {
            return;
        }
        let now = sim.elapsed();
        match fault {
            Fault::Cut((a, b)) => sim.partition(a, b),
            Fault::OneWay((a, b)) => sim.partition_oneway(a, b),
            Fault::Held((a, b)) => sim.hold(a, b),
            Fault::Lossy((a, b)) => sim.set_link_fail_rate(a, b, 0.1),
            Fault::Slow((a, b)) => {
                sim.set_link_max_message_latency(a, b, self.dice.millis(200..2000));
            }
            Fault::NodeDown(node) => sim.crash(node),
            Fault::WechatSlow => wechat.set_slow(self.dice.within(500..6000)),
            Fault::StoreDown => {
                if self.dice.percent(30) {
                    book.note(now, "the store loses everything");
                    shelf.flush();
                }
                sim.crash(store::HOST);
            }
        }
        let end = now + self.dice.millis(100..8000);
        book.note(now, format!("{fault:?} until {end:?}"));
        self.active.push((end, fault));
    }

    fn draw(&mut self, nodes: &[&'static str]) -> Fault {
        let node = *self.dice.pick(nodes);
        let storm = self.weather == Weather::Storm;
        let other = if storm && self.dice.percent(65) {
            store::HOST
        } else {
            wechat::HOST
        };
        let link = if self.dice.percent(50) {
            (node, other)
        } else {
            (other, node)
        };
        match self.dice.within(0..if storm { 10 } else { 7 }) {
            0 | 1 => Fault::Cut(link),
            2 => Fault::OneWay(link),
            3 => Fault::Held(link),
            4 => Fault::Lossy(link),
            5 => Fault::Slow(link),
            6 => Fault::WechatSlow,
            7 | 8 => Fault::NodeDown(node),
            _ => Fault::StoreDown,
        }
    }

    fn end(&self, fault: Fault, sim: &mut Sim<'_>, wechat: &Wechat, book: &Ledger) {
        book.note(sim.elapsed(), format!("end of {fault:?}"));
        match fault {
            Fault::Cut((a, b)) => sim.repair(a, b),
            Fault::OneWay((a, b)) => sim.repair_oneway(a, b),
            Fault::Held((a, b)) => sim.release(a, b),
            Fault::Lossy((a, b)) => {
                sim.set_link_fail_rate(a, b, 0.0);
                sim.repair(a, b);
            }
            Fault::Slow((a, b)) => sim.set_link_max_message_latency(a, b, self.latency),
            Fault::StoreDown => sim.bounce(store::HOST),
            Fault::NodeDown(node) => sim.bounce(node),
            Fault::WechatSlow => wechat.set_slow(100),
        }
    }
}

impl Fault {
    fn link(self) -> Option<Link> {
        match self {
            Self::Cut(link)
            | Self::OneWay(link)
            | Self::Held(link)
            | Self::Lossy(link)
            | Self::Slow(link) => Some(link),
            Self::StoreDown | Self::NodeDown(_) | Self::WechatSlow => None,
        }
    }

    fn is_in_the_way_of(self, other: &Self) -> bool {
        match (self.link(), other.link()) {
            (Some((a, b)), Some((c, d))) => (a, b) == (c, d) || (a, b) == (d, c),
            _ => self == *other,
        }
    }
}
