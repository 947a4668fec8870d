//! From the client's first option to the export that it uses: a pure state machine, option in, bytes out.

use super::codec::{
    Asked, BlockSizes, EXPORT_NAME, PAYLOAD_MAX, Query, Refusal, SET_META_CONTEXT, Unasked, context, export_info,
    option_ack, option_refused, server, sizes_info, text_info, transmission,
};

/// An export as it is told to clients.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// Its name, as clients ask for it.
    pub name: Vec<u8>,
    /// For a person.
    pub description: String,
    /// In bytes.
    pub size: u64,
    /// What it can do ([`transmission`]), structured replies or not.
    pub flags: u16,
    /// What costs nothing more, in bytes.
    pub block: u32,
    /// The names of its metadata contexts.
    pub contexts: Vec<String>,
}

/// The exports that there are at the moment.
pub trait Exports {
    /// All of them.
    fn all(&self) -> Vec<Offer>;

    /// The one of this name; the empty name is that of the default export.
    fn find(&self, name: &[u8]) -> Option<Offer>;
}

/// What a client and the server have agreed on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Agreed {
    /// The export.
    pub offer: Offer,
    /// Whether reads are answered by structured replies.
    pub structured: bool,
    /// The contexts that the client asks for, by their places in [`Offer::contexts`], which are their numbers on the wire as well.
    pub contexts: Vec<u32>,
}

/// What follows an option.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// Another one.
    Option,
    /// Requests.
    Transmission(Box<Agreed>),
    /// The end of the connection.
    End,
}

/// How far a client has come.
#[derive(Debug, Default)]
pub struct Negotiation {
    zeroes: bool,
    structured: bool,
    /// The export's own name, its contexts at that time, and which of them were selected last.
    contexts: Option<(Vec<u8>, Vec<String>, Vec<u32>)>,
}

impl Negotiation {
    /// With a client that wants 124 zeroes behind the answer to EXPORT_NAME, or not.
    pub fn new(zeroes: bool) -> Self {
        Self { zeroes, ..Self::default() }
    }

    /// An option came: what is to be sent, and what follows.
    pub fn step(&mut self, option: u32, data: &[u8], exports: &impl Exports) -> (Vec<u8>, Next) {
        match Asked::parse(option, data).and_then(|asked| self.answer(option, asked, exports)) {
            Ok(answer) => answer,
            // There is no way to say anything else to that one.
            Err(_) if option == EXPORT_NAME => (Vec::new(), Next::End),
            Err(Unasked(why, text)) => {
                if option == SET_META_CONTEXT {
                    self.contexts = None;
                }
                (option_refused(option, why, text), Next::Option)
            }
        }
    }

    fn answer(&mut self, option: u32, asked: Asked, exports: &impl Exports) -> Result<(Vec<u8>, Next), Unasked> {
        let find = |name: &[u8]| exports.find(name).ok_or(Unasked(Refusal::Unknown, "there is no such export"));
        let mut answer = Vec::new();
        let mut next = Next::Option;
        match asked {
            Asked::ExportName(name) => {
                let agreed = self.agree(find(&name)?);
                answer.extend_from_slice(&agreed.offer.size.to_be_bytes());
                answer.extend_from_slice(&agreed.offer.flags.to_be_bytes());
                answer.resize(answer.len() + if self.zeroes { 124 } else { 0 }, 0);
                return Ok((answer, Next::Transmission(Box::new(agreed))));
            }
            Asked::Abort => next = Next::End,
            Asked::List => {
                exports.all().iter().for_each(|it| answer.extend(server(option, &it.name, &it.description)));
            }
            Asked::Info { name, sizes, texts, go } => {
                let agreed = self.agree(find(&name)?);
                let Offer { name, description, size, flags, block, .. } = &agreed.offer;
                answer.extend(export_info(option, *size, *flags));
                if sizes {
                    let sizes = BlockSizes { minimum: 1, preferred: *block, maximum: PAYLOAD_MAX };
                    answer.extend(sizes_info(option, sizes));
                }
                if texts {
                    answer.extend(text_info(option, true, name));
                    answer.extend(text_info(option, false, description.as_bytes()));
                }
                if go {
                    next = Next::Transmission(Box::new(agreed));
                }
            }
            Asked::StructuredReply => self.structured = true,
            Asked::Contexts { .. } if !self.structured => {
                return Err(Unasked(Refusal::Invalid, "structured replies come first"));
            }
            Asked::Contexts { name, queries, set } => {
                let offer = find(&name)?;
                let chosen = choose(&offer, &queries, set);
                for id in &chosen {
                    let name = offer.contexts[*id as usize].as_bytes();
                    answer.extend(context(option, if set { *id } else { 0 }, name));
                }
                if set {
                    self.contexts = Some((offer.name, offer.contexts, chosen));
                }
            }
        }
        answer.extend(option_ack(option));
        Ok((answer, next))
    }

    fn agree(&self, mut offer: Offer) -> Agreed {
        if self.structured {
            offer.flags |= transmission::SEND_DF;
        }
        let chosen = self.contexts.as_ref().filter(|(name, ..)| *name == offer.name);
        let contexts = chosen.map(|(.., ids)| ids.clone()).unwrap_or_default();
        if let Some((_, names, _)) = chosen {
            // The client knows them by the numbers that they had then, whatever has come since.
            offer.contexts.clone_from(names);
        }
        Agreed { offer, structured: self.structured, contexts }
    }
}

/// The contexts that queries are about: each by its name, and for the asking those of a namespace as well (`base:`); all, where nothing
/// is asked.
fn choose(offer: &Offer, queries: &[Query], set: bool) -> Vec<u32> {
    let matches = |name: &str, query: &[u8]| {
        query == name.as_bytes() || (!set && query.ends_with(b":") && name.as_bytes().starts_with(query))
    };
    let all = !set && queries.is_empty();
    let wanted = |name: &str| all || queries.iter().any(|query| matches(name, query));
    (0..).zip(&offer.contexts).filter(|(_, name)| wanted(name)).map(|(id, _)| id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct One;

    impl Exports for One {
        fn all(&self) -> Vec<Offer> {
            self.find(b"").into_iter().collect()
        }

        fn find(&self, name: &[u8]) -> Option<Offer> {
            let contexts = ["base:allocation", "qemu:dirty-bitmap:a"].map(str::to_owned).to_vec();
            let offer = Offer {
                name: b"disk".to_vec(),
                description: "live".into(),
                size: 4096,
                flags: transmission::HAS_FLAGS,
                block: 4096,
                contexts,
            };
            [&b""[..], b"disk"].contains(&name).then_some(offer)
        }
    }

    fn name(text: &[u8]) -> Vec<u8> {
        [&(text.len() as u32).to_be_bytes()[..], text].concat()
    }

    fn queries(option: u32, of: &[u8], list: &[&[u8]], negotiation: &mut Negotiation) -> (Vec<u8>, Next) {
        let queries = list.iter().flat_map(|it| name(it)).collect::<Vec<_>>();
        let data = [name(of), (list.len() as u32).to_be_bytes().to_vec(), queries].concat();
        negotiation.step(option, &data, &One)
    }

    fn go(negotiation: &mut Negotiation, export: &[u8]) -> (Vec<u8>, Next) {
        negotiation.step(7, &[name(export), vec![0, 0]].concat(), &One)
    }

    fn agreed(next: Next) -> Agreed {
        match next {
            Next::Transmission(agreed) => *agreed,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn structured_replies_come_before_what_needs_them() {
        let mut it = Negotiation::new(false);
        let (answer, next) = queries(10, b"disk", &[b"base:allocation"], &mut it);
        assert_eq!((&answer[12..16], next), (&(Refusal::Invalid as u32).to_be_bytes()[..], Next::Option));
        assert_eq!(it.step(8, b"", &One), (option_ack(8), Next::Option));
        assert!(queries(10, b"disk", &[b"base:allocation"], &mut it).0.len() > option_ack(10).len());
        let agreed = agreed(go(&mut it, b"").1);
        assert_eq!((agreed.structured, agreed.contexts), (true, vec![0]), "the default export is the disk");
        assert_eq!(agreed.offer.flags, transmission::HAS_FLAGS | transmission::SEND_DF);
    }

    #[test]
    fn the_last_selection_counts_also_where_it_fails() {
        let mut it = Negotiation { structured: true, ..Negotiation::default() };
        queries(10, b"disk", &[b"base:allocation", b"qemu:dirty-bitmap:a"], &mut it);
        assert_eq!(agreed(go(&mut it, b"disk").1).contexts, [0, 1]);
        queries(10, b"nobody", &[b"base:allocation"], &mut it);
        assert_eq!(agreed(go(&mut it, b"disk").1).contexts, [0_u32; 0]);
    }

    /// Another context comes before it between the selection and the choice of the export.
    #[test]
    fn a_selected_context_stays_what_it_was() {
        struct Grows(std::cell::Cell<usize>);
        impl Exports for Grows {
            fn all(&self) -> Vec<Offer> {
                Vec::new()
            }

            fn find(&self, name: &[u8]) -> Option<Offer> {
                let looked = self.0.replace(self.0.get() + 1);
                let mut offer = One.find(name)?;
                if looked > 0 {
                    offer.contexts.insert(1, "qemu:dirty-bitmap:newer".into());
                }
                Some(offer)
            }
        }
        let (exports, mut it) =
            (Grows(std::cell::Cell::new(0)), Negotiation { structured: true, ..Negotiation::default() });
        let query = name(b"qemu:dirty-bitmap:a");
        it.step(10, &[name(b"disk"), 1_u32.to_be_bytes().to_vec(), query].concat(), &exports);
        let agreed = agreed(it.step(7, &[name(b"disk"), vec![0, 0]].concat(), &exports).1);
        let chosen: Vec<_> = agreed.contexts.iter().map(|id| &agreed.offer.contexts[*id as usize]).collect();
        assert_eq!(chosen, ["qemu:dirty-bitmap:a"]);
    }

    #[test]
    fn a_namespace_is_for_asking_and_not_for_selecting() {
        let offer = One.find(b"").expect("the disk");
        assert_eq!(choose(&offer, &[b"qemu:".to_vec()], false), [1]);
        assert_eq!(choose(&offer, &[b"qemu:".to_vec()], true), [0_u32; 0]);
        assert_eq!((choose(&offer, &[], false), choose(&offer, &[], true)), (vec![0, 1], vec![]));
        assert_eq!(choose(&offer, &[b"x-other:thing".to_vec()], false), [0_u32; 0]);
    }

    #[test]
    fn export_name_is_answered_without_words() {
        let answer = |zeroes, export: &[u8]| Negotiation::new(zeroes).step(1, export, &One);
        let (bytes, next) = answer(true, b"disk");
        assert_eq!((bytes.len(), agreed(next).structured), (134, false));
        assert_eq!(answer(false, b"").0, [0, 0, 0, 0, 0, 0, 0x10, 0, 0, 1]);
        assert_eq!(answer(false, b"nobody"), (Vec::new(), Next::End));
    }

    #[test]
    fn an_unknown_export_is_told_and_the_next_option_heard() {
        let mut it = Negotiation::new(false);
        let (answer, next) = go(&mut it, b"nobody");
        assert_eq!((&answer[12..16], next), (&(Refusal::Unknown as u32).to_be_bytes()[..], Next::Option));
        assert_eq!(it.step(2, b"", &One), (option_ack(2), Next::End));
    }
}
